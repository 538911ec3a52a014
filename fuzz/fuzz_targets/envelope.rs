//! Bytes from Redis: as an envelope, and as an entry of a stream.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tidegate_backplane::fuzz::envelope(bytes));
