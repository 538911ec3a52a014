//! Stands between a process and the one that takes its place, and kills one of them at a step of what they say to each other.
//! It is started in place of the new process, and starts that one itself.

use std::{
    ffi::OsString,
    fs,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio, exit},
    thread,
};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::getppid,
};
use tidegate_testkit::{DEADLINE, end, eventually, pid_runs};

#[derive(Debug, Parser)]
#[command(name = "tidegate-between", about = "Kills a side of a live upgrade at one of its steps")]
struct Arguments {
    /// The second byte of the record that is not passed on
    step: u8,
    victim: Victim,
    /// Where the new process's number is written
    pid_file: PathBuf,
    program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Victim {
    Old,
    New,
}

/// The kernel passes 253 descriptors in a record at most, and a record is no longer than 64 KiB.
const DESCRIPTORS_MAX: usize = 253;
const RECORD_BYTES_MAX: usize = 64 * 1024;

fn main() -> Result<()> {
    let Arguments { step, victim, pid_file, program, arguments } = Arguments::parse();
    let old = getppid().context("it was started by a process")?.as_raw_nonzero().get().cast_unsigned();
    let with_old = std::io::stdin().as_fd().try_clone_to_owned()?;
    let (with_new, of_new) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let new = Command::new(program).args(arguments).stdin(Stdio::from(of_new)).spawn()?.id();
    fs::write(&pid_file, new.to_string())?;
    let victim = if victim == Victim::Old { old } else { new };
    let (from_old, to_new) = (with_old.try_clone()?, with_new.try_clone()?);
    thread::spawn(move || pass_on(&from_old, &to_new, step, victim));
    pass_on(&with_new, &with_old, step, victim)
}

/// Ends this process at that record, and with it what the two have of each other.
fn pass_on(from: &OwnedFd, to: &OwnedFd, step: u8, victim: u32) -> Result<()> {
    let mut buffer = vec![0; RECORD_BYTES_MAX];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = recvmsg(from, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let record = &buffer[..read.bytes];
        if record.is_empty() {
            exit(0);
        }
        if record.get(1) == Some(&step) {
            end(victim);
            eventually("it has ended", DEADLINE, || !pid_runs(victim));
            exit(0);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                descriptors.extend(more);
            }
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
        if !borrowed.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&borrowed));
        }
        sendmsg(to, &[IoSlice::new(record)], &mut control, SendFlags::NOSIGNAL)?;
    }
}
