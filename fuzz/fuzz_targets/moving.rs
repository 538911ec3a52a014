//! Bytes as the state of a connection that goes on in another process, a gateway's or a router's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_wire::{moving::Connection, proxied::Client};

fuzz_target!(|record: &[u8]| {
    if let Ok(connection) = Connection::parse(record) {
        assert_eq!(connection.to_bytes(), record);
    }
    if let Ok(client) = Client::parse(record) {
        assert_eq!(client.to_bytes(), record);
    }
});
