//! The protocols that clients speak, a folder for each. A new one is a folder and a line in [`PROTOCOLS`].

mod centrifuge;
mod pusher;
mod raw;
mod sse;

use tidegate_ops::http::IsShards;

use self::{
    centrifuge::{
        Centrifuge, Way,
        forms::{Carrier, Payloads, Push},
    },
    sse::forms::{self as sse_forms, StreamEvent},
};
use crate::{
    http::Apis,
    hub::form::{FormId, Forms},
    session::protocol::{ProtocolId, Protocols},
};

/// The first that serves a request has it.
pub(crate) static PROTOCOLS: Protocols = &[
    &raw::Raw,
    &sse::Sse,
    &pusher::PusherChannels,
    &Centrifuge(Way::WebSocket),
    &Centrifuge(Way::HttpStream),
    &Centrifuge(Way::EventSource),
    &Centrifuge(Way::UniWebSocket),
    &Centrifuge(Way::UniHttpStream),
    &Centrifuge(Way::UniEventSource),
    &raw::echo::Echo,
];

/// A list of forms: those that stand here, then those of Centrifugo's carriers, six of each.
macro_rules! forms {
    ($($own:expr),* ; $($carrier:ident)*) => {
        Forms(&[
            $(&$own,)*
            $(
                &push(Carrier::$carrier, Payloads::Plain, false),
                &push(Carrier::$carrier, Payloads::Plain, true),
                &push(Carrier::$carrier, Payloads::Whole, false),
                &push(Carrier::$carrier, Payloads::Whole, true),
                &push(Carrier::$carrier, Payloads::Delta, false),
                &push(Carrier::$carrier, Payloads::Delta, true),
            )*
        ])
    };
}

/// How all of them tell what happens in a channel.
pub(crate) static FORMS: Forms = forms![
    raw::forms::Verbatim,
    raw::forms::Enveloped { tells_presence: false },
    stream(sse_forms::EVENT, sse_forms::EVENT_WITH_PRESENCE, false, false),
    stream(sse_forms::ENVELOPED, sse_forms::ENVELOPED_WITH_PRESENCE, true, false),
    stream(sse_forms::EVENT_OF_MANY, sse_forms::EVENT_OF_MANY_WITH_PRESENCE, false, true),
    stream(sse_forms::ENVELOPED_OF_MANY, sse_forms::ENVELOPED_OF_MANY_WITH_PRESENCE, true, true),
    pusher::forms::PusherEvent,
    raw::forms::Enveloped { tells_presence: true },
    stream(sse_forms::EVENT_WITH_PRESENCE, sse_forms::EVENT_WITH_PRESENCE, false, false),
    stream(sse_forms::ENVELOPED_WITH_PRESENCE, sse_forms::ENVELOPED_WITH_PRESENCE, true, false),
    stream(sse_forms::EVENT_OF_MANY_WITH_PRESENCE, sse_forms::EVENT_OF_MANY_WITH_PRESENCE, false, true),
    stream(
        sse_forms::ENVELOPED_OF_MANY_WITH_PRESENCE,
        sse_forms::ENVELOPED_OF_MANY_WITH_PRESENCE,
        true,
        true
    );
    Json Protobuf Lines Messages Events UniFrames UniLines UniEvents
];

const fn stream(id: FormId, with_presence: FormId, is_enveloped: bool, is_of_many: bool) -> StreamEvent {
    StreamEvent { id, with_presence, is_enveloped, is_of_many }
}

const fn push(carrier: Carrier, payloads: Payloads, tells_presence: bool) -> Push {
    Push { carrier, tells_presence, payloads }
}

/// What they answer over HTTP, each under paths of its own.
pub(crate) static APIS: Apis =
    &[&pusher::http::SignedApi, &centrifuge::http::ServerApi, &centrifuge::http::Emulation];

/// Whether a request without a body is one of theirs.
pub(crate) fn serve(method: &str, path: &str) -> bool {
    ProtocolId::of(PROTOCOLS, method, path, false, false).is_some()
}

/// The same with `--dev`.
pub(crate) fn serve_dev(method: &str, path: &str) -> bool {
    ProtocolId::of(PROTOCOLS, method, path, false, true).is_some()
}

/// How HTTP tells a request that is theirs from one of its own, with `--dev` or without. It is the rule of the shards, so
/// that no request goes back and forth.
pub(crate) fn is_shards(dev: bool) -> IsShards {
    match dev {
        true => |head, _| ProtocolId::of(PROTOCOLS, head.method, head.path, head.has_body(), true).is_some(),
        false => {
            |head, _| ProtocolId::of(PROTOCOLS, head.method, head.path, head.has_body(), false).is_some()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_backplane::{Channel, Member, PresenceEvent, PresenceKind};

    use super::*;
    use crate::hub::content::Content;

    #[test]
    fn each_form_stands_where_its_id_says() {
        for (place, form) in (0..).zip(FORMS.0) {
            assert_eq!(form.id(), FormId::new(place), "{form:?}");
        }
    }

    #[test]
    fn others_are_not_told_who_is_there() {
        let channel = Channel::new("a").expect("a channel");
        let member = Arc::new(Member { connection: "n.1".into(), user: "u".into(), info: None });
        let kind = PresenceKind::Left { member, connections: 0 };
        let content = Content::Presence(Arc::new(PresenceEvent { sequence: 1, kind }));
        for form in FORMS.0 {
            let says = form.say(&channel, &content, &mut Vec::new()).is_some();
            assert_eq!(says, form.says_presence(), "{form:?}");
            let with = FORMS.get(form.with_presence());
            assert_eq!((with.with_presence(), with.has_heads()), (with.id(), form.has_heads()), "{form:?}");
        }
    }
}
