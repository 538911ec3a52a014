//! An application that answers as a test says, badly where that is what is tested, and remembers what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// One request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// What is written for a request. An answer without a byte is none: the connection is closed.
pub type Manner = Arc<dyn Fn(&Asked) -> Vec<u8> + Send + Sync>;

/// Listens as long as the process.
#[derive(Clone)]
pub struct Answers {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    manner: Mutex<Manner>,
    asked: Mutex<Vec<Asked>>,
    /// Answers wait as long as it is true.
    is_stuck: Mutex<bool>,
    goes_on: Condvar,
    stuck: AtomicUsize,
}

impl Asked {
    /// The question or event: `connect`, `disconnected`, …
    #[must_use]
    pub fn kind(&self) -> &str {
        self.header("ce-type").trim_start_matches("tidegate.")
    }

    /// Empty where it was not sent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| &**value).unwrap_or_default()
    }
}

/// A whole answer.
#[must_use]
pub fn answer(status: u16, media: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let length = if status == 204 { String::new() } else { format!("content-length: {length}\r\n") };
    let head = format!("HTTP/1.1 {status} Said\r\ncontent-type: {media}\r\n{length}\r\n");
    [head.as_bytes(), body].concat()
}

/// 204.
#[must_use]
pub fn yes(_: &Asked) -> Vec<u8> {
    answer(204, "text/plain", b"")
}

impl Answers {
    /// # Panics
    /// When loopback has no free port.
    pub fn start(manner: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            manner: Mutex::new(Arc::new(manner)),
            asked: Mutex::default(),
            is_stuck: Mutex::default(),
            goes_on: Condvar::new(),
            stuck: AtomicUsize::new(0),
        });
        let answers = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || drop(shared.serve(&stream)));
            }
        });
        answers
    }

    /// From now on it answers so.
    pub fn turn(&self, manner: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) {
        *lock(&self.shared.manner) = Arc::new(manner);
    }

    /// Whether it answers nothing, though it takes what it is asked.
    pub fn stick(&self, is_stuck: bool) {
        *lock(&self.shared.is_stuck) = is_stuck;
        self.shared.goes_on.notify_all();
    }

    /// Questions that it keeps without an answer.
    #[must_use]
    pub fn stuck(&self) -> usize {
        self.shared.stuck.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }
}

impl Shared {
    /// Requests of one connection.
    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        let (mut reader, mut writer) = (BufReader::new(stream), stream);
        while let Some(asked) = read(&mut reader)? {
            lock(&self.asked).push(asked.clone());
            self.stuck.fetch_add(1, Ordering::SeqCst);
            let waits = self.goes_on.wait_while(lock(&self.is_stuck), |is_stuck| *is_stuck);
            drop(waits.unwrap_or_else(PoisonError::into_inner));
            self.stuck.fetch_sub(1, Ordering::SeqCst);
            let manner = Arc::clone(&lock(&self.manner));
            let bytes = manner(&asked);
            if bytes.is_empty() {
                break;
            }
            writer.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// `None`: the connection has ended.
fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Asked>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => return Ok(None),
            _ if line.trim().is_empty() => break,
            _ => lines.push(line),
        }
    }
    let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
    let pairs = lines[1..].iter().filter_map(|line| line.split_once(':'));
    let headers: BTreeMap<_, _> =
        pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Asked { path, headers, body: String::from_utf8_lossy(&body).into() }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("address", &self.address).finish_non_exhaustive()
    }
}
