//! Servers that tests start in their own process: HTTP answers for health checks, a name server.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};

/// Answers every request with one status, until told otherwise.
#[derive(Debug)]
pub(crate) struct HttpStub {
    pub(crate) address: SocketAddr,
    status: Arc<AtomicU16>,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl HttpStub {
    pub(crate) async fn start() -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// Two on one port, at 127.0.0.1 and 127.0.0.2.
    pub(crate) async fn start_two() -> [Self; 2] {
        loop {
            let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            // Somebody else may have it there.
            if let Ok(second) = TcpListener::bind(("127.0.0.2", port)).await {
                return [first, second].map(Self::serve);
            }
        }
    }

    fn serve(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (status, requests) = (Arc::new(AtomicU16::new(200)), Arc::<Mutex<Vec<String>>>::default());
        let (answered, seen) = (Arc::clone(&status), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            let mut silent = Vec::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 1024];
                let length = socket.read(&mut head).await.unwrap();
                seen.lock().unwrap().push(String::from_utf8_lossy(&head[..length]).into_owned());
                match answered.load(Ordering::SeqCst) {
                    Self::SILENT => silent.push(socket),
                    status => {
                        let answer = format!("HTTP/1.1 {status} Word\r\nContent-Length: 0\r\n\r\n");
                        socket.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            }
        });
        Self { address, status, requests, task }
    }

    /// Accepts and says nothing, as a process that was stopped.
    pub(crate) const SILENT: u16 = 0;

    pub(crate) fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for HttpStub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A name server with a few records, over UDP.
#[derive(Debug)]
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    records: Arc<Mutex<HashMap<String, Vec<Data>>>>,
    is_silent: Arc<AtomicBool>,
    ignored: Arc<Mutex<Option<&'static str>>>,
    task: JoinHandle<()>,
}

/// What a record holds.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    A(Ipv4Addr),
    Srv { priority: u16, weight: u16, port: u16, target: &'static str },
}

impl NameServer {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let records = Arc::<Mutex<HashMap<String, Vec<Data>>>>::default();
        let is_silent = Arc::new(AtomicBool::new(false));
        let ignored = Arc::<Mutex<Option<&'static str>>>::default();
        let (table, silent, unheard) = (Arc::clone(&records), Arc::clone(&is_silent), Arc::clone(&ignored));
        let task = tokio::spawn(async move {
            let mut query = vec![0; 1500];
            loop {
                let (length, peer) = socket.recv_from(&mut query).await.unwrap();
                // The first label follows its length.
                let is_ignored =
                    unheard.lock().unwrap().is_some_and(|name| query[13..].starts_with(name.as_bytes()));
                if !is_ignored && !silent.load(Ordering::SeqCst) {
                    let answer = answer(&query[..length], &table.lock().unwrap());
                    socket.send_to(&answer, peer).await.unwrap();
                }
            }
        });
        Self { address, records, is_silent, ignored, task }
    }

    pub(crate) fn set(&self, name: &str, records: Vec<Data>) {
        self.records.lock().unwrap().insert(name.to_owned(), records);
    }

    /// Names that begin with this get no answer.
    pub(crate) fn ignore(&self, name: &'static str) {
        *self.ignored.lock().unwrap() = Some(name);
    }

    pub(crate) fn silence(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::SeqCst);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// RFC 1035 §4: the question once more, then the records of its name and type, to be forgotten at once.
fn answer(query: &[u8], table: &HashMap<String, Vec<Data>>) -> Vec<u8> {
    let (mut name, mut at) = (String::new(), 12);
    while query[at] > 0 {
        let length = usize::from(query[at]);
        name += std::str::from_utf8(&query[at + 1..=at + length]).unwrap();
        name.push('.');
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let question = &query[12..at + 5];
    let known = table.get(&name.to_ascii_lowercase());
    let records: Vec<Vec<u8>> = known
        .into_iter()
        .flatten()
        .filter_map(|data| match (kind, data) {
            (1, Data::A(address)) => Some(address.octets().to_vec()),
            (33, Data::Srv { priority, weight, port, target }) => {
                let mut bytes: Vec<u8> =
                    [priority, weight, port].iter().flat_map(|n| n.to_be_bytes()).collect();
                for label in target.trim_end_matches('.').split('.') {
                    bytes.push(label.len() as u8);
                    bytes.extend_from_slice(label.as_bytes());
                }
                bytes.push(0);
                Some(bytes)
            }
            _ => None,
        })
        .collect();
    // Response, recursion available; 3: no such name.
    let code: u8 = if known.is_some() { 0 } else { 3 };
    let mut out = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
    out.extend_from_slice(question);
    for data in records {
        // The name is that of the question, at offset 12; class IN, age 0.
        out.extend_from_slice(&[0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 0, 0, data.len() as u8]);
        out.extend_from_slice(&data);
    }
    out
}
