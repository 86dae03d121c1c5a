#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::replsock_lines::run(bytes));
