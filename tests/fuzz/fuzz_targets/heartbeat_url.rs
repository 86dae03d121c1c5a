#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::heartbeat_url::run(bytes));
