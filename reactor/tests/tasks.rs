//! Tasks that run in a shard, beside its connections.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    future::poll_fn,
    io::Write as _,
    net::{Shutdown, TcpStream},
    sync::mpsc,
    thread,
};

use support::{Running, narrow_pair, pattern, read_exact, read_to_end};
use tidegate_reactor::{Mail, Task, TaskSocket};
use tidegate_testkit::DEADLINE;
use tokio::sync::{Notify, oneshot};

const QUEUE_BYTES: usize = 1 << 20;

/// Begins a task that has the other end.
fn begin<W>(shard: &Running, work: impl FnOnce(TaskSocket) -> W) -> TcpStream
where
    W: Future<Output = ()> + Send + 'static,
{
    let (client, server) = narrow_pair();
    shard.mailbox.send(Mail::Begin(Task::new(server.into(), work)));
    client
}

async fn read(socket: &mut TaskSocket, room: &mut [u8]) -> usize {
    poll_fn(|_| socket.poll_read(room)).await.unwrap()
}

async fn write_all(socket: &mut TaskSocket, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        bytes = &bytes[poll_fn(|_| socket.poll_write(bytes)).await.unwrap()..];
    }
}

/// The socket is narrow: both directions fill up and have to be waited for. Its end is seen however little was before it.
#[test]
fn a_task_reads_and_writes_until_the_end() {
    let shard = Running::start(QUEUE_BYTES);
    let clients = [1 << 20, 3, 0].map(|bytes| {
        let mut client = begin(&shard, |mut socket| async move {
            let mut buffer = vec![0; 5000];
            while let read @ 1.. = read(&mut socket, &mut buffer).await {
                write_all(&mut socket, &buffer[..read]).await;
            }
        });
        thread::spawn(move || {
            let sent = pattern(bytes);
            let mut writer = client.try_clone().unwrap();
            let of_writer = sent.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&of_writer).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let received = read_to_end(&mut client);
            writing.join().unwrap();
            assert!(received == sent, "bytes are missing, or came twice");
        })
    });
    for client in clients {
        client.join().unwrap();
    }
}

/// One that is sent more than it can take leaves the shard to others.
#[test]
fn a_task_does_not_hold_up_connections() {
    let mut shard = Running::start(QUEUE_BYTES);
    let mut sender = begin(&shard, |mut socket| async move {
        let mut buffer = vec![0; 16];
        while let 1.. = read(&mut socket, &mut buffer).await {}
    });
    let sending = thread::spawn(move || while sender.write_all(&[0; 4096]).is_ok() {});
    let mut client = shard.echo_client();
    client.write_all(b"still there").unwrap();
    assert_eq!(read_exact(&mut client, 11), b"still there");
    // Ends the task, and with its socket who sends to it.
    shard.stop();
    sending.join().unwrap();
}

#[test]
fn a_task_is_woken_by_others_and_ends() {
    let shard = Running::start(QUEUE_BYTES);
    let (ping, pong) = (std::sync::Arc::new(Notify::new()), mpsc::channel());
    let of_task = ping.clone();
    let mut client = begin(&shard, |socket| async move {
        for turn in 0..100 {
            of_task.notified().await;
            pong.0.send(turn).unwrap();
        }
        drop(socket);
    });
    for turn in 0..100 {
        ping.notify_one();
        assert_eq!(pong.1.recv_timeout(DEADLINE).unwrap(), turn);
    }
    assert_eq!(read_to_end(&mut client), b"", "its socket is closed with it");
    // Its place is free for another.
    let mut next = begin(&shard, |mut socket| async move { write_all(&mut socket, b"next").await });
    assert_eq!(read_to_end(&mut next), b"next");
}

/// What waits for its end sees it.
#[test]
fn the_end_of_the_shard_ends_its_tasks() {
    let shard = Running::start(QUEUE_BYTES);
    let mailbox = shard.mailbox.clone();
    let (ends, ended) = oneshot::channel::<()>();
    let mut client = begin(&shard, |mut socket| async move {
        write_all(&mut socket, b"runs").await;
        std::future::pending::<()>().await;
        drop((socket, ends));
    });
    assert_eq!(read_exact(&mut client, 4), b"runs");
    assert!(mailbox.is_open());
    shard.stop();
    assert!(ended.blocking_recv().is_err());
    assert_eq!(read_to_end(&mut client), b"");
    assert!(!mailbox.is_open());
    // One that is begun now is dropped at once.
    let (ends, ended) = oneshot::channel::<()>();
    let (_client, server) = narrow_pair();
    let task = Task::new(server.into(), |socket| async move { drop((socket, ends)) });
    mailbox.send(Mail::Begin(task));
    assert!(ended.blocking_recv().is_err());
}
