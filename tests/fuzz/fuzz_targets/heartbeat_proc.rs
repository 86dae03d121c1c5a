#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed_heartbeat::heartbeat_proc::run(bytes));
