//! Publishing: `/events`, `/batch_events`, and the older way under a channel's path.
//!
//! The form of the whole request is checked before anything is published: what answers 4xx published nothing.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidegate_backplane::{Channel, Payload, Sender, Text};
use tidegate_wire::{json::JsonValue, pusher::ChannelKind};

use super::{Call, NOTHING, PusherError, channels::Info};
use crate::{
    event::{self, EventNameError},
    node::{PublishHistory, PublishRequest},
};

/// The body of `/events`, or an event of a batch. What it has besides is not looked at, as with Pusher.
#[derive(Debug, Deserialize)]
struct EventFields<D> {
    name: Option<String>,
    data: Option<D>,
    channels: Option<Vec<String>>,
    channel: Option<String>,
    socket_id: Option<String>,
    info: Option<String>,
}

#[derive(Debug, Deserialize)]
struct BatchFields<'b> {
    #[serde(borrow)]
    batch: Option<Vec<EventFields<JsonValue<'b>>>>,
}

/// An event that may be published.
#[derive(Debug)]
struct Event {
    name: Box<str>,
    payload: Text,
    channels: Vec<(Channel, ChannelKind)>,
    sender: Option<Box<Sender>>,
    info: Info,
}

impl Call<'_> {
    /// `POST /events`
    pub(super) async fn events(&self, body: &[u8]) -> Result<Bytes, PusherError> {
        check_object(body)?;
        // A string, as every SDK sends it, is unescaped once and into its place.
        let event = match serde_json::from_slice::<EventFields<String>>(body) {
            Ok(fields) => self.event(fields, |data: String| Ok(data.into()))?,
            Err(_) => {
                // Of anything else it is the JSON text, though SDKs only send strings.
                let fields: EventFields<JsonValue<'_>> = parse(body)?;
                self.event(fields, text_of)?
            }
        };
        self.publish_fields(event).await
    }

    /// `POST /events` without a body: everything is in the query, `channels` separated by commas.
    pub(super) async fn events_of_query(&self) -> Result<Bytes, PusherError> {
        let own = |name: &str| self.parameters.get(name).map(str::to_owned);
        let channels = own("channels").or_else(|| own("channels[]"));
        let fields = EventFields {
            name: own("name"),
            data: own("data"),
            channels: channels.map(|names| names.split(',').map(str::to_owned).collect()),
            channel: own("channel"),
            socket_id: own("socket_id"),
            info: own("info"),
        };
        self.publish_fields(self.event(fields, |data: String| Ok(data.into()))?).await
    }

    async fn publish_fields(&self, event: Event) -> Result<Bytes, PusherError> {
        self.take_events(event.channels.len())?;
        self.publish(&event).await?;
        if !event.info.counts() {
            return Ok(NOTHING);
        }
        let channels: Map<_, _> = self.counts(&event).await?.collect();
        Ok(json!({ "channels": channels }).to_string().into())
    }

    /// `POST /batch_events`
    pub(super) async fn batch_events(&self, body: &[u8]) -> Result<Bytes, PusherError> {
        check_object(body)?;
        let fields: BatchFields<'_> = parse(body)?;
        let batch = fields.batch.ok_or(PusherError::Missing("batch"))?;
        let max = self.app.limits.events_per_batch;
        if batch.len() > max as usize {
            return Err(PusherError::TooManyEvents { max });
        }
        let events: Vec<_> = batch
            .into_iter()
            .map(|fields| match fields.channels {
                Some(_) => Err(PusherError::Missing("channel")),
                None if fields.channel.is_none() => Err(PusherError::Missing("channel")),
                None => self.event(fields, text_of),
            })
            .collect::<Result<_, _>>()?;
        self.take_events(events.len())?;
        // One after the other: two events for one channel keep their order.
        for event in &events {
            self.publish(event).await?;
        }
        if !events.iter().any(|event| event.info.counts()) {
            return Ok(NOTHING);
        }
        let mut answers = Vec::with_capacity(events.len());
        for event in &events {
            answers.push(self.counts(event).await?.next().map_or(json!({}), |(_, counts)| counts));
        }
        Ok(json!({ "batch": answers }).to_string().into())
    }

    /// `POST /channels/{channel}/events`
    pub(super) async fn channel_events(&self, segment: &str, body: Bytes) -> Result<Bytes, PusherError> {
        let data = Text::try_from(body).map_err(|_| PusherError::Text)?;
        let own = |name: &str| self.parameters.get(name).map(str::to_owned);
        let fields = EventFields {
            name: own("name"),
            data: Some(data),
            channels: None,
            channel: Some(super::decoded(segment).into_owned()),
            socket_id: own("socket_id"),
            info: None,
        };
        let event = self.event(fields, Ok)?;
        self.take_events(1)?;
        self.publish(&event).await?;
        Ok(NOTHING)
    }

    fn event<D>(
        &self,
        fields: EventFields<D>,
        text: impl FnOnce(D) -> Result<Text, PusherError>,
    ) -> Result<Event, PusherError> {
        let name = fields.name.ok_or(PusherError::Missing("name"))?;
        match event::check_name(&name) {
            // Only raw clients and event streams know these names as the gateway's own.
            Err(EventNameError::Reserved) if !self.app.has_raw_clients => {}
            checked => checked.map_err(PusherError::Event)?,
        }
        let payload = text(fields.data.ok_or(PusherError::Missing("data"))?)?;
        let max = self.app.limits.event_bytes.bytes();
        if payload.len() > max {
            return Err(PusherError::TooLarge { max });
        }
        let names = match (fields.channels, fields.channel) {
            (Some(names), Some(_)) if !names.is_empty() => return Err(PusherError::BothWays),
            (Some(names), None) if !names.is_empty() => names,
            (_, Some(name)) => vec![name],
            _ => return Err(PusherError::Missing("channels")),
        };
        let max = self.app.limits.channels_per_event;
        if names.len() > max as usize {
            return Err(PusherError::TooManyChannels { max });
        }
        Ok(Event {
            name: name.into(),
            payload,
            channels: self.each_once(&names)?,
            sender: fields.socket_id.filter(|id| !id.is_empty()).map(sender).transpose()?,
            info: fields.info.as_deref().map_or(Ok(Info::default()), Info::parse)?,
        })
    }

    /// A channel that is named twice is published to once.
    fn each_once(&self, names: &[String]) -> Result<Vec<(Channel, ChannelKind)>, PusherError> {
        let mut seen = HashSet::with_capacity(names.len());
        names.iter().filter(|name| seen.insert(name.as_str())).map(|name| self.named(name)).collect()
    }

    async fn publish(&self, event: &Event) -> Result<(), PusherError> {
        let publish = |channel: &Channel| {
            self.state.node.publish(PublishRequest {
                channel: channel.clone(),
                event: Some(event.name.clone()),
                payload: Payload::Text(event.payload.clone()),
                idempotency_key: None,
                sender: event.sender.clone(),
                history: PublishHistory::Namespace,
            })
        };
        match &*event.channels {
            [(channel, _)] => drop(publish(channel).await?),
            channels => {
                // All are tried, whichever fails.
                let results = join_all(channels.iter().map(|(channel, _)| publish(channel))).await;
                results.into_iter().collect::<Result<Vec<_>, _>>()?;
            }
        }
        Ok(())
    }

    /// The channels of an event with the counts that it asks for.
    async fn counts(&self, event: &Event) -> Result<impl Iterator<Item = (String, Value)>, PusherError> {
        let of = |(channel, kind): &(Channel, ChannelKind)| {
            let (channel, kind, info) = (channel.clone(), *kind, event.info);
            async move {
                let sums = if info.counts() { self.sums(&channel).await? } else { Default::default() };
                Ok::<_, PusherError>((channel.name().to_owned(), Value::from(info.of(kind, sums))))
            }
        };
        Ok(try_join_all(event.channels.iter().map(of)).await?.into_iter())
    }

    fn take_events(&self, events: usize) -> Result<(), PusherError> {
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        if self.app.takes_events(events) { Ok(()) } else { Err(PusherError::RateLimited) }
    }
}

fn text_of(data: JsonValue<'_>) -> Result<Text, PusherError> {
    Ok(data.into_text().into_owned().into())
}

/// A list of members in their order is read as if it had their names; it is no form of ours.
fn check_object(body: &[u8]) -> Result<(), PusherError> {
    if !body.trim_ascii_start().starts_with(b"[") {
        return Ok(());
    }
    let object = serde_json::from_slice::<Map<String, Value>>(body);
    object.map(drop).map_err(|error| PusherError::Json { member: "it".into(), error })
}

/// Reads a body, and says which of its members is wrong.
fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, PusherError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| PusherError::Json {
        member: match error.path().to_string().as_str() {
            "." | "?" => "it".into(),
            path => format!("its {path}").into(),
        },
        error: error.into_inner(),
    })?;
    let rest = deserializer.end();
    rest.map_err(|error| PusherError::Json { member: "it".into(), error }).map(|()| read)
}

/// The connection that is not sent the event.
fn sender(socket_id: String) -> Result<Box<Sender>, PusherError> {
    let is_number =
        |text: &str| !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    match socket_id.split_once('.') {
        Some((a, b)) if is_number(a) && is_number(b) => {
            Ok(Box::new(Sender { connection: Some(socket_id.into()), user: None }))
        }
        _ => Err(PusherError::SocketId),
    }
}
