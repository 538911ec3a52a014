//! An HTTP endpoint that keeps what is posted to it and shows it to whoever asks: where webhooks go.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::wait::DEADLINE;

/// A posted body longer than this is a fault of the sender: 100 webhook events of 11 KiB are 1.1 MB.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Listens until it is dropped. A `POST` is kept and answered 200; a `GET` is answered with all that was kept, as a JSON
/// array of `{"headers": {…}, "body": "…"}`, so that a script in another language can judge it.
#[derive(Debug)]
pub struct Inbox {
    address: SocketAddr,
    kept: Arc<Mutex<Vec<Posted>>>,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

/// One request that was kept.
#[derive(Debug, Clone)]
pub struct Posted {
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Inbox {
    /// # Panics
    /// When loopback has no free port.
    pub fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// # Panics
    /// When the address is not free.
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("the address is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let kept: Arc<Mutex<Vec<Posted>>> = Arc::default();
        let stopping: Arc<AtomicBool> = Arc::default();
        let acceptor = {
            let (kept, stopping) = (Arc::clone(&kept), Arc::clone(&stopping));
            thread::spawn(move || accept(&listener, &kept, &stopping))
        };
        Self { address, kept, stopping, acceptor: Some(acceptor) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything posted so far.
    pub fn posted(&self) -> Vec<Posted> {
        lock(&self.kept).clone()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the acceptor. It fails only when the acceptor is gone.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

fn accept(listener: &TcpListener, kept: &Arc<Mutex<Vec<Posted>>>, stopping: &AtomicBool) {
    for stream in listener.incoming() {
        if stopping.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let kept = Arc::clone(kept);
        // A sender that hangs holds its own thread, up to the deadline.
        thread::spawn(move || drop(serve(stream, &kept)));
    }
}

/// One request per connection.
fn serve(stream: TcpStream, kept: &Mutex<Vec<Posted>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let is_post = line.starts_with("POST ");
    let headers = read_headers(&mut reader)?;
    let length: usize = headers.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length.min(BODY_BYTES_MAX)];
    reader.read_exact(&mut body)?;
    let answer = if is_post {
        let body = String::from_utf8_lossy(&body).into_owned();
        lock(kept).push(Posted { headers, body });
        String::new()
    } else {
        let all = lock(kept);
        Value::from_iter(all.iter().map(|posted| json!({"headers": posted.headers, "body": posted.body})))
            .to_string()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        answer.len()
    );
    reader.get_mut().write_all((head + &answer).as_bytes())
}

fn read_headers(reader: &mut impl BufRead) -> std::io::Result<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(headers) };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

fn lock(kept: &Mutex<Vec<Posted>>) -> MutexGuard<'_, Vec<Posted>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::Rest;

    #[test]
    fn what_is_posted_is_shown() {
        let inbox = Inbox::start();
        let rest = Rest::new(inbox.address);
        assert_eq!(rest.post("/hooks", "application/json", "{\"n\":1}").status, 200);
        let shown = rest.get("/").json();
        assert_eq!(shown[0]["body"], "{\"n\":1}");
        assert_eq!(shown[0]["headers"]["content-type"], "application/json");
        assert_eq!(inbox.posted().len(), 1);
    }
}
