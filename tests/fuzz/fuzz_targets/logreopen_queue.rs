#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed_logreopen::logreopen_queue::run(bytes));
