//! Text as what a client with `envelope=json` sends: a publication, a command, or neither.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tidegate_wire::raw::{
    self,
    command::{self, ClientText, CommandKind},
};

fuzz_target!(|text: &str| {
    let (id, message) = match command::parse_client_text(text) {
        Ok(ClientText::Publication(publication)) => {
            let again = raw::parse_client_publication(text).expect("a publication without commands too");
            assert_eq!(publication, again);
            return;
        }
        Ok(ClientText::Command(command)) => {
            // `Value` refuses escapes of lone surrogates and numbers such as 1e999 in members that are not read.
            if let Ok(value) = serde_json::from_str::<Value>(text) {
                assert!(value.is_object() && value.get("data").is_none_or(Value::is_null));
                assert_eq!(command.id, value["id"].as_u64());
            }
            (command.id, name(&command.kind).to_owned())
        }
        Err(error) => (error.id, error.to_string()),
    };
    let mut out = Vec::new();
    command::encode_error(id, 400, &message, &mut out);
    check_answer(&out, id, "error");
    assert_eq!(parsed(&out)["error"]["message"], message);
    out.clear();
    command::encode_ok(id, |out| command::push_place(text, Some(("e", 1)), out), &mut out);
    check_answer(&out, id, "ok");
    assert_eq!(parsed(&out)["ok"]["channel"], text);
});

fn name<'a>(kind: &'a CommandKind<'_>) -> &'a str {
    match kind {
        CommandKind::Subscribe { channel, .. }
        | CommandKind::Unsubscribe { channel }
        | CommandKind::Presence { channel, .. }
        | CommandKind::History { channel, .. } => channel,
        CommandKind::Publish(publication) => &publication.data,
        CommandKind::Token(token) => token,
        CommandKind::Message(message) => message,
        CommandKind::Ping => "",
    }
}

fn check_answer(out: &[u8], id: Option<u64>, member: &str) {
    assert!(!out.iter().any(|byte| matches!(byte, b'\r' | b'\n' | b'\0')), "one line");
    let answer = parsed(out);
    assert!(answer[member].is_object());
    assert_eq!(answer["id"].as_u64(), id);
}

fn parsed(out: &[u8]) -> Value {
    serde_json::from_slice(out).expect("JSON")
}
