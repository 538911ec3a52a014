//! What servers ask of its connections, on whichever node they are: subscribe, unsubscribe, refresh, close, send.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tidegate_wire::centrifuge::{
    code::{Disconnect, Unsubscribed},
    message::SubscribeRequest,
    push,
};

use super::{NAME, Stage};
use crate::{
    hooks::ServerSubscription,
    metrics::Instructed,
    node::instruction::{Since, What},
    session::Ctx,
};

impl Ctx<'_> {
    pub(super) fn centrifuge_instructed(&mut self, what: &What) -> Instructed {
        if let What::Own { protocol, text } = what {
            return self.emulate(protocol, text);
        }
        if self.stage() != Some(Stage::Connected) && !matches!(what, What::Close { .. }) {
            return Instructed::NotReady;
        }
        match what {
            What::Subscribe { channel, since, data, info } => {
                let place = since.as_ref().map(|Since { epoch, offset }| (epoch.to_string(), *offset));
                let recover = place.is_some();
                let (epoch, offset) = place.unwrap_or_default();
                let channel = channel.to_string();
                let request =
                    SubscribeRequest { channel, recover, offset, epoch, ..SubscribeRequest::default() };
                let data = STANDARD.decode(&**data).unwrap_or_default();
                let said = ServerSubscription { data, info: info.clone(), ..ServerSubscription::default() };
                self.subscribe_by_order(&request, said).err().unwrap_or(Instructed::Done)
            }
            What::Unsubscribe { channel } => match self.key_of_own(channel) {
                Some(key) => {
                    self.take_away(key, Unsubscribed::Server);
                    Instructed::Done
                }
                None => Instructed::NotSubscribed,
            },
            What::Send(message) => {
                self.push_to_client(|encoding, out| push::message(&message.data, encoding, out));
                Instructed::Done
            }
            What::Expire => {
                self.cut(Disconnect::Expired, &"by a server");
                Instructed::Done
            }
            other => self.instructed(other),
        }
    }

    /// A frame of the client itself, from the node that it was sent to.
    fn emulate(&mut self, protocol: &str, text: &str) -> Instructed {
        match serde_json::from_str::<(String, String)>(text) {
            Ok((proof, frame)) if protocol == NAME => {
                self.take_emulated(&proof, &STANDARD.decode(frame).unwrap_or_default());
                Instructed::Done
            }
            _ => Instructed::Unsupported,
        }
    }
}
