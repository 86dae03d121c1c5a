#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed_heartbeat::heartbeat_command_line::run(bytes));
