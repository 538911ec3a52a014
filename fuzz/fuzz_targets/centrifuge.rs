//! Bytes as a frame of Centrifugo's clients in both encodings; what is a command is written back and read, and a payload in it
//! is one line of JSON in a push.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_wire::centrifuge::{
    Encoding,
    message::Reply,
    next_command,
    push::{self, Data, Published, Style},
    read_emulated,
};

fuzz_target!(|frame: &[u8]| {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        drop(read_emulated(frame, encoding));
        let mut rest = frame;
        while let Ok(Some((command, used))) = next_command(rest, encoding) {
            assert!(used > 0 && used <= rest.len());
            rest = &rest[used..];
            if encoding == Encoding::Json {
                let mut line = serde_json::to_vec(&command).expect("a command can be written");
                assert!(!line.contains(&b'\n'));
                line.push(b'\n');
                let (again, _) = next_command(&line, Encoding::Json)
                    .expect("what was written is read")
                    .expect("a command");
                assert_eq!(again.id, command.id);
            }
            if let Some(publish) = &command.publish {
                check_push(&publish.channel, &publish.data);
            }
        }
    }
});

fn check_push(channel: &str, data: &[u8]) {
    let data = match std::str::from_utf8(data) {
        Ok(text) => Data::Text(text),
        Err(_) => Data::Binary(data),
    };
    let published = Published { data, user: None, offset: 1, epoch: None, event: None, is_delta: false };
    let mut out = Vec::new();
    push::publication(channel, &published, Style::of(Encoding::Json), &mut out);
    assert!(!out.contains(&b'\n'));
    let read: Reply = serde_json::from_slice(&out).expect("a reply");
    assert_eq!(read.push.expect("a push").channel, channel);
}
