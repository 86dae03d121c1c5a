#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed_replsock::replsock_proc::run(bytes));
