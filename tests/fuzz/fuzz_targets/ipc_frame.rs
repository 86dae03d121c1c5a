#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::ipc_frame::run(bytes));
