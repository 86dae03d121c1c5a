#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed_spawnwork::spawnwork_state::run(bytes));
