//! A real shard on a thread of its own, with a driver that does what a test tells it in closures.

#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    collections::HashMap,
    fmt, io,
    io::Read,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use bytes::Bytes;
use rustls::ServerConfig;
use tidegate_reactor::{
    Closed, ConnectionId, Connections, Driver, Mail, Mailbox, Overflow, Shard, Shared, Tick, TlsSession,
    Turn, Written,
};
use tidegate_testkit::{
    DEADLINE, eventually_some,
    net::{SocketOptions, connect},
};

/// How a test names a connection.
pub(crate) type Name = u32;

/// State of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State {
    pub(crate) name: Name,
    /// Its bytes come back; else they are kept in [`Scribe::received`].
    pub(crate) echoes: bool,
}

/// What the shard is asked to do: a closure, on its thread.
pub(crate) struct Order(Box<Closure>);

type Closure = dyn FnOnce(&mut Scribe, &mut Connections<State>) + Send;

/// Writes down what the reactor tells it.
#[derive(Debug, Default)]
pub(crate) struct Scribe {
    pub(crate) ids: HashMap<Name, ConnectionId>,
    pub(crate) received: HashMap<Name, Vec<u8>>,
    pub(crate) closed: Vec<(Name, Closed)>,
    pub(crate) recovered: Vec<(Name, u64)>,
    /// Connections that were opened from here and stand.
    pub(crate) connected: Vec<Name>,
    /// Connections whose queue ran empty, of those that asked to be told.
    pub(crate) flushed: Vec<Name>,
    /// Half-open connections whose peer has ended its side.
    pub(crate) ended: Vec<Name>,
    /// Timers that fired, and the tick at which they did.
    pub(crate) fired: Vec<(Name, Tick)>,
    pub(crate) turns: u64,
    /// For each connection: the last turn in which bytes came, and the most times that they came in one.
    pub(crate) reads: HashMap<Name, (u64, u32)>,
    /// The most bytes used of those that are handed over.
    pub(crate) share: Option<usize>,
    /// Each byte is answered by itself.
    pub(crate) answers_each: bool,
    /// The rest waits for the next tick.
    pub(crate) rests_until_tick: bool,
    /// Connections are adopted paused.
    pub(crate) pauses: bool,
    /// On the end of one connection, this message goes to another, merged with what else the turn brings.
    pub(crate) will: Option<(Name, Bytes)>,
    /// Connections speak TLS from their adoption on.
    pub(crate) tls: Option<Arc<ServerConfig>>,
}

impl Driver for Scribe {
    type Connection = State;
    type Command = Order;

    fn on_adopted(&mut self, connections: &mut Connections<State>, id: ConnectionId) {
        let name = connections.get(id).expect("it is new").name;
        self.ids.insert(name, id);
        self.received.insert(name, Vec::new());
        connections.set_paused(id, self.pauses);
        if let Some(config) = &self.tls {
            let session = TlsSession::new(Arc::clone(config), &[]).expect("a session");
            connections.start_tls(id, Box::new(session));
        }
    }

    fn on_bytes(
        &mut self,
        connections: &mut Connections<State>,
        id: ConnectionId,
        bytes: &mut [u8],
    ) -> usize {
        let bytes = match self.share {
            Some(share) => &bytes[..bytes.len().min(share)],
            None => &*bytes,
        };
        if self.rests_until_tick {
            connections.rest_until_tick();
        }
        let State { name, echoes } = *connections.get(id).expect("bytes are of somebody");
        let reads = self.reads.entry(name).or_default();
        reads.1 = if reads.0 == self.turns { reads.1 + 1 } else { reads.1.max(1) };
        reads.0 = self.turns;
        if self.answers_each {
            for byte in bytes {
                connections.write(id, std::slice::from_ref(byte));
            }
        } else if echoes {
            connections.write_beyond_bound(id, bytes);
            connections.pause_until_flushed(id);
        } else {
            self.received.entry(name).or_default().extend_from_slice(bytes);
        }
        bytes.len()
    }

    fn on_timer(&mut self, connections: &mut Connections<State>, id: ConnectionId) {
        let name = connections.get(id).expect("timers are of somebody").name;
        self.fired.push((name, connections.now()));
    }

    fn on_recovered(&mut self, connections: &mut Connections<State>, id: ConnectionId, dropped: u64) {
        if let Some(state) = connections.get(id) {
            self.recovered.push((state.name, dropped));
        }
    }

    fn on_connected(&mut self, connections: &mut Connections<State>, id: ConnectionId) {
        self.connected.push(connections.get(id).expect("it stands").name);
    }

    fn on_flushed(&mut self, connections: &mut Connections<State>, id: ConnectionId) {
        self.flushed.push(connections.get(id).expect("it is there").name);
    }

    fn on_end(&mut self, connections: &mut Connections<State>, id: ConnectionId) {
        self.ended.push(connections.get(id).expect("it is there").name);
    }

    fn on_command(&mut self, connections: &mut Connections<State>, order: Order) {
        (order.0)(self, connections);
    }

    fn on_closed(
        &mut self,
        connections: &mut Connections<State>,
        id: ConnectionId,
        state: State,
        closed: Closed,
    ) {
        assert_eq!(self.ids.remove(&state.name), Some(id), "adopted once, closed once");
        self.closed.push((state.name, closed));
        if let Some((heir, bytes)) = self.will.take() {
            connections.write_shared(self.ids[&heir].slot, &message(&bytes, Overflow::Disconnect));
        }
    }

    fn on_turn(&mut self, _: &mut Connections<State>, _: std::time::Duration) -> Turn {
        self.turns += 1;
        Turn::Idle
    }
}

/// A shard that runs.
pub(crate) struct Running {
    pub(crate) mailbox: Mailbox<Mail<State, Order>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    names: Name,
}

impl Running {
    pub(crate) fn start(queue_bytes_max: usize) -> Self {
        let shard = Shard::<Scribe>::new(queue_bytes_max).expect("a shard");
        let mailbox = shard.mailbox();
        let thread = std::thread::spawn(move || shard.run(Scribe::default()));
        Self { mailbox, thread: Some(thread), names: 0 }
    }

    /// As [`start`](Self::start); what is adopted speaks TLS.
    pub(crate) fn start_tls(queue_bytes_max: usize, config: ServerConfig) -> Self {
        let running = Self::start(queue_bytes_max);
        running.ask(|scribe, _| scribe.tls = Some(Arc::new(config)));
        running
    }

    /// Runs a closure in the shard and waits for its answer.
    #[track_caller]
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Scribe, &mut Connections<State>) -> R + Send + 'static,
    ) -> R {
        let (answer, answered) = mpsc::channel();
        self.mailbox.send(Mail::Command(Order(Box::new(move |scribe, connections| {
            answer.send(order(scribe, connections)).expect("the test waits");
        }))));
        answered.recv_timeout(DEADLINE).expect("the shard answers")
    }

    /// Asks until the closure gives a value.
    #[track_caller]
    pub(crate) fn eventually<R: Send + 'static>(
        &self,
        what: &str,
        probe: impl Fn(&mut Scribe, &mut Connections<State>) -> Option<R> + Clone + Send + 'static,
    ) -> R {
        eventually_some(what, DEADLINE, || self.ask(probe.clone()))
    }

    /// How a connection ended.
    #[track_caller]
    pub(crate) fn eventually_closed(&self, name: Name) -> Closed {
        self.eventually("the connection is closed", move |scribe, _| {
            scribe.closed.iter().find(|closed| closed.0 == name).map(|closed| closed.1)
        })
    }

    pub(crate) fn adopt_read(&mut self, socket: TcpStream, read: &'static [u8], echoes: bool) -> Name {
        self.names += 1;
        let connection = State { name: self.names, echoes };
        self.mailbox.send(Mail::Adopt { socket, read: Bytes::from_static(read), connection });
        self.names
    }

    /// Adopts a socket whose bytes are kept.
    pub(crate) fn adopt(&mut self, socket: TcpStream) -> Name {
        self.adopt_read(socket, b"", false)
    }

    /// A client whose bytes are kept.
    pub(crate) fn client(&mut self) -> (TcpStream, Name) {
        let (client, server) = pair();
        (client, self.adopt(server))
    }

    /// A client whose bytes come back.
    pub(crate) fn echo_client(&mut self) -> TcpStream {
        let (client, server) = pair();
        self.adopt_read(server, b"", true);
        client
    }

    /// A connection that the shard opens, to which it writes at once.
    #[track_caller]
    pub(crate) fn connect(&mut self, target: SocketAddr, first: &'static [u8]) -> (Name, ConnectionId) {
        self.names += 1;
        let name = self.names;
        let id = self.ask(move |scribe, connections| {
            let id = connections.connect(target, State { name, echoes: false }).expect("begins");
            scribe.ids.insert(name, id);
            connections.write(id, first);
            id
        });
        (name, id)
    }

    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.mailbox.send(Mail::Stop);
        let ended = self.thread.take().expect("stopped once").join();
        ended.expect("no panic in the shard").expect("the shard ends well");
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.mailbox.send(Mail::Stop);
    }
}

/// One message that is written to several.
pub(crate) fn message(bytes: &Bytes, overflow: Overflow) -> Shared<'_> {
    Shared { head: &[], bytes, messages: 1, last_at: 0, key: 0, overflow }
}

/// Both ends of a connection over loopback: the client's and the server's.
pub(crate) fn pair() -> (TcpStream, TcpStream) {
    pair_with(SocketOptions::default(), None)
}

/// A connection that holds little: some 64 KiB in flight fill it.
pub(crate) fn narrow_pair() -> (TcpStream, TcpStream) {
    let options = SocketOptions { receive_buffer_bytes: Some(16 * 1024), ..SocketOptions::default() };
    pair_with(options, Some(16 * 1024))
}

pub(crate) fn pair_with(options: SocketOptions, send_buffer_bytes: Option<usize>) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    let client = connect(address(&listener), options).expect("connects");
    let (server, _) = listener.accept().expect("accepts");
    server.set_nonblocking(true).expect("a flag");
    server.set_nodelay(true).expect("a socket option");
    client.set_read_timeout(Some(DEADLINE)).expect("a socket option");
    if let Some(bytes) = send_buffer_bytes {
        socket2::SockRef::from(&server).set_send_buffer_size(bytes).expect("a socket option");
    }
    (client, server)
}

pub(crate) fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("a bound socket has an address")
}

#[track_caller]
pub(crate) fn read_exact(client: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    client.read_exact(&mut read).expect("as many bytes");
    read
}

/// Everything until the server ends the stream.
#[track_caller]
pub(crate) fn read_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    client.read_to_end(&mut read).expect("an orderly end");
    read
}

pub(crate) fn shut(client: &TcpStream) {
    client.shutdown(Shutdown::Write).expect("shuts");
}

/// `bytes` bytes that show where one is missing: a count in four bytes each.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).step_by(4).flat_map(u32::to_be_bytes).take(bytes).collect()
}

/// Messages that will never be sent, of a write.
pub(crate) fn lost(written: Written, messages: u32) -> u64 {
    match written {
        Written::Sent | Written::Queued => 0,
        Written::Dropped(dropped) => u64::from(dropped),
        Written::Closed => u64::from(messages),
    }
}
