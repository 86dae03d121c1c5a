#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed_spawnwork::spawnwork_request::run(bytes));
