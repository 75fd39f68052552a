#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roclip_fuzz::weights_safetensors(bytes));
