//! What an idle TLS session holds, by the memory of this process; nothing else runs in it.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use tidegate_reactor::TlsSession;
use tidegate_testkit::{
    memory::pss_bytes,
    tls::{Authority, client_session},
};

const SESSIONS: usize = 2_000;

/// What is measured is under 4 KiB by rustls 0.23 with AES-GCM; twice that would be a buffer that stays.
const SESSION_BYTES_MAX: u64 = 8 * 1024;

fn main() {
    // What a test harness is asked by cargo and nextest: name the tests, all of them or the ignored ones.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("an_idle_session_is_small: test");
        }
        return;
    }
    an_idle_session_is_small();
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

fn an_idle_session_is_small() {
    // Freed memory would hold what is measured next.
    let mut kept = Vec::new();
    for version in [&TLS13, &TLS12] {
        let authority = Authority::new();
        let server = Arc::new(authority.issue(2050).server_config(&[version]));
        let client = Arc::new(authority.client_config(&[version]));
        let open = || {
            let mut client = client_session(&client);
            let mut session = TlsSession::new(Arc::clone(&server), &[]).unwrap();
            // One more round than the handshake has: the server's tickets leave with the last.
            for _ in 0..3 {
                let mut flight = Vec::new();
                client.write_tls(&mut flight).unwrap();
                session.receive(&mut flight, &mut Vec::new()).unwrap();
                let unsent = session.unsent().to_vec();
                session.sent(unsent.len());
                let mut unsent = &unsent[..];
                while !unsent.is_empty() {
                    client.read_tls(&mut unsent).unwrap();
                    client.process_new_packets().unwrap();
                }
            }
            assert!(session.is_open());
            Box::new(session)
        };
        // What is allocated once, and freed space that later sessions use, is there before the measurement.
        kept.extend((0..SESSIONS / 4).map(|_| open()));
        let before = pss_bytes(std::process::id());
        let held: Vec<_> = (0..SESSIONS).map(|_| open()).collect();
        let bytes = pss_bytes(std::process::id()).saturating_sub(before) / SESSIONS as u64;
        println!(
            "{:?}: {bytes} bytes for an idle session, {} of them in it",
            version.version,
            size_of::<TlsSession>()
        );
        assert!(bytes <= SESSION_BYTES_MAX, "{bytes}");
        kept.extend(held);
    }
    assert_eq!(kept.len(), 2 * (SESSIONS + SESSIONS / 4));
}
