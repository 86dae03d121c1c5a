#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed_watchtouch::watchtouch_stamp::run(bytes));
