//! `publish` and `broadcast`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tidegate_backplane::{Channel, Payload, Text};
use tidegate_wire::centrifuge::{code::ErrorCode, push::EVENT_TAG};

use super::{
    Answer, Call,
    answer::{Refused, parameters, put_reply},
    request::Publish,
};
use crate::{
    auth::Scope,
    event,
    http::{publish_all, query},
    node::{PublishHistory, PublishOutcome, PublishRequest},
};

/// Channels of one broadcast, as publications of one batch of `/v1`.
const CHANNELS_MAX: usize = 1000;

/// What is published, wherever.
struct Sent {
    event: Option<Box<str>>,
    payload: Payload,
    idempotency_key: Option<Box<str>>,
    history: PublishHistory,
}

impl Call<'_> {
    pub(super) async fn publish(&self, params: &Bytes) -> Answer {
        let request: Publish<'_> = parameters(params)?;
        let channel = self.channel(Scope::Publish, &request.channel)?;
        let sent = Sent::of(request, params)?;
        Ok(published(&self.state.node.publish(sent.to(channel)).await?))
    }

    /// The channels do not wait for each other, and each has its own answer.
    pub(super) async fn broadcast(&self, params: &Bytes) -> Answer {
        let mut request: Publish<'_> = parameters(params)?;
        let names = std::mem::take(&mut request.channels);
        if names.is_empty() {
            return Err(Refused::bad("it needs channels"));
        }
        if names.len() > CHANNELS_MAX {
            let why = format!("a broadcast has at most {CHANNELS_MAX} channels");
            return Err(Refused::because(ErrorCode::LimitExceeded, why));
        }
        let channels = names.iter().map(|name| self.channel(Scope::Publish, name));
        let channels = channels.collect::<Result<Vec<Channel>, Refused>>()?;
        let sent = Sent::of(request, params)?;
        let orders = channels.into_iter().map(|channel| sent.to(channel)).collect();
        let mut json = b"{\"responses\":[".to_vec();
        for (nth, (_, outcome)) in publish_all(self.state, orders).await.into_iter().enumerate() {
            if nth > 0 {
                json.push(b',');
            }
            let answer = outcome.map(|outcome| published(&outcome)).map_err(Refused::from);
            put_reply(None, answer, &mut json);
        }
        json.extend_from_slice(b"]}");
        Ok(json)
    }
}

impl Sent {
    fn of(request: Publish<'_>, body: &Bytes) -> Result<Self, Refused> {
        let Publish { data, b64data, skip_history, tags, idempotency_key, version, .. } = request;
        if version > 0 {
            let why = "versions of publications are not looked at: use idempotency_key";
            return Err(Refused::because(ErrorCode::NotAvailable, why));
        }
        let payload = match (data, &*b64data) {
            (None, "") => return Err(Refused::bad("it needs data")),
            (Some(data), "") => text_of(body, data.get()),
            (_, base64) => {
                let bytes = STANDARD.decode(base64).map_err(|_| Refused::bad("b64data is no base64"))?;
                match String::from_utf8(bytes) {
                    Ok(text) => Payload::Text(text.into()),
                    Err(error) => Payload::Binary(error.into_bytes().into()),
                }
            }
        };
        let mut event = None;
        for (name, value) in tags {
            if name != EVENT_TAG {
                return Err(Refused::bad(format!("of tags only {EVENT_TAG:?} is kept")));
            }
            event::check_name(&value).map_err(|error| Refused::bad(error.to_string()))?;
            event = Some(value.into());
        }
        let is_key = |key: &str| key.is_empty() || query::is_idempotency_key(key);
        if !is_key(&idempotency_key) {
            return Err(Refused::bad("an idempotency_key has 1 to 128 visible ASCII characters"));
        }
        let idempotency_key = (!idempotency_key.is_empty()).then(|| idempotency_key.into());
        let history = if skip_history { PublishHistory::Never } else { PublishHistory::Namespace };
        Ok(Self { event, payload, idempotency_key, history })
    }

    fn to(&self, channel: Channel) -> PublishRequest {
        let Self { event, payload, idempotency_key, history } = self;
        PublishRequest {
            channel,
            event: event.clone(),
            payload: payload.clone(),
            idempotency_key: idempotency_key.clone(),
            sender: None,
            history: *history,
        }
    }
}

/// The JSON text of the data, in the memory of the body.
fn text_of(body: &Bytes, json: &str) -> Payload {
    let shared = Text::try_from(body.slice_ref(json.as_bytes()));
    shared.map_or_else(|_| Payload::Text(json.to_owned().into()), Payload::Text)
}

fn published(outcome: &PublishOutcome) -> Vec<u8> {
    match outcome.position {
        None => super::NOTHING.to_vec(),
        Some(position) => {
            format!("{{\"offset\":{},\"epoch\":\"{}\"}}", position.offset, position.epoch).into_bytes()
        }
    }
}
