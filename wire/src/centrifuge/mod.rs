//! The client protocol of Centrifugo, version 2, as pure codecs.
//!
//! A frame holds one command or many: JSON objects, one a line, or Protobuf messages, each after its length as a varint.
//! Both encodings have the same messages ([`message`]); [`next_command`] takes the first command off a frame, and
//! [`encode`] appends a reply. What is pushed to all subscribers of a channel is written by [`push`], once for all of
//! them. [`code`] has the numbers that tell a client what went wrong and whether it should come back.

pub mod code;
pub mod delta;
mod field;
mod frame;
pub mod message;
pub mod push;

pub use frame::{COMMAND_NAMES, Encoding, Malformed, encode, next_command, read_emulated};
pub use push::Style;
