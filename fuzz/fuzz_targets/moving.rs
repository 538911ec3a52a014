//! Bytes as the state of a connection that goes on in another process.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_wire::moving::Connection;

fuzz_target!(|record: &[u8]| {
    if let Ok(connection) = Connection::parse(record) {
        assert_eq!(connection.to_bytes(), record);
    }
});
