//! Links against real servers, with a subscriber that records what it is told.

#![allow(clippy::unwrap_used)]

mod cluster;
mod sentinel;
mod standalone;
mod start;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use redis::{Cmd, Value};
use tidegate_testkit::{DEADLINE, eventually, eventually_some};

use super::{LinkOptions, Links, Login};
use crate::BackplaneError;
use crate::redis::contract::{Changed, Commands, LinkId, Route, Session, Subscriber, Subscribing};
use crate::redis::error::RedisStartError;
use crate::redis::options::{RedisFiles, SentinelLogin};
use crate::redis::url::RedisUrl;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Up(LinkId, Session),
    Down(LinkId, Session),
    RoutesChanged,
    Confirmed(LinkId, Session, String),
    Ended(LinkId, Session, String),
    Message(LinkId, Session, String, Vec<u8>),
}

#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    fn add(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    #[track_caller]
    pub(super) fn eventually(&self, what: &str, holds: impl Fn(&Event) -> bool) {
        eventually(what, DEADLINE, || self.0.lock().unwrap().iter().any(&holds));
    }

    /// Sessions of each link only grow, and nothing comes outside of one.
    #[track_caller]
    pub(super) fn check_order(&self) {
        let mut up = std::collections::HashMap::new();
        let mut newest = Session(0);
        for event in self.events() {
            match event {
                Event::Up(link, session) => {
                    assert!(up.insert(link, session).is_none(), "{link:?} is up twice");
                    newest = newest.max(session);
                }
                Event::Down(link, session) => assert_eq!(up.remove(&link), Some(session)),
                Event::RoutesChanged => {}
                Event::Confirmed(link, session, _)
                | Event::Ended(link, session, _)
                | Event::Message(link, session, ..) => assert_eq!(up.get(&link), Some(&session)),
            }
        }
    }
}

impl Subscriber for Recorder {
    fn up(&self, link: LinkId, session: Session) {
        self.add(Event::Up(link, session));
    }

    fn down(&self, link: LinkId, session: Session) {
        self.add(Event::Down(link, session));
    }

    fn routes_changed(&self, _: &Changed) {
        self.add(Event::RoutesChanged);
    }

    fn confirmed(&self, link: LinkId, session: Session, channel: &[u8]) {
        self.add(Event::Confirmed(link, session, text(channel)));
    }

    fn ended(&self, link: LinkId, session: Session, channel: &[u8]) {
        self.add(Event::Ended(link, session, text(channel)));
    }

    fn message(&self, link: LinkId, session: Session, channel: &[u8], payload: &[u8]) {
        self.add(Event::Message(link, session, text(channel), payload.to_vec()));
    }
}

/// Links and what their subscriber was told.
pub(super) struct Rig {
    pub(super) links: Links,
    pub(super) recorder: Arc<Recorder>,
}

impl Rig {
    pub(super) async fn start(url: &str) -> Self {
        Self::try_start(url, None).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) async fn try_start(url: &str, ca: Option<PathBuf>) -> Result<Self, RedisStartError> {
        let files = RedisFiles { ca, ..RedisFiles::default() };
        Self::try_start_with(url, files).await
    }

    pub(super) async fn try_start_with(url: &str, files: RedisFiles) -> Result<Self, RedisStartError> {
        Self::try_start_as(url, files, None).await
    }

    pub(super) async fn try_start_as(
        url: &str,
        files: RedisFiles,
        sentinel: Option<SentinelLogin>,
    ) -> Result<Self, RedisStartError> {
        let url: RedisUrl = url.parse().unwrap();
        let options = LinkOptions {
            login: Login { credentials: url.credentials.clone(), is_tls: url.tls, files, sentinel },
            url,
            prefix: "tidegate".into(),
            instance: "n1.1".into(),
            node: "n1".into(),
            replicas: 0,
            scripts: crate::redis::scripts::codes(),
            host: None,
        };
        let links = Links::new(options)?;
        let recorder = Arc::new(Recorder::default());
        let subscriber: Arc<dyn Subscriber> = Arc::clone(&recorder) as Arc<dyn Subscriber>;
        links.start(subscriber).await?;
        Ok(Self { links, recorder })
    }

    pub(super) async fn call(&self, tag: &str, command: &[&str]) -> Result<Value, BackplaneError> {
        self.links.call(tag, cmd(command)).await
    }

    pub(super) async fn publish(&self, tag: &str, payload: &str) -> Result<Value, BackplaneError> {
        let command = if self.links.is_sharded() { "SPUBLISH" } else { "PUBLISH" };
        self.call(tag, &[command, &channel(tag), payload]).await
    }

    /// Subscribes the channel of a tag on its link's session, and waits for the confirmation.
    #[track_caller]
    pub(super) fn subscribe(&self, tag: &str) -> (Route, Session) {
        let route = self.links.route(tag).expect("a route");
        let session = self.session(route.link);
        assert!(self.links.subscribe(route.link, session, &[channel(tag).as_bytes()]));
        let expected = Event::Confirmed(route.link, session, channel(tag));
        self.recorder.eventually("the confirmation", |event| *event == expected);
        (route, session)
    }

    /// The newest session of a link.
    #[track_caller]
    pub(super) fn session(&self, link: LinkId) -> Session {
        let of_link = |event: &Event| match event {
            Event::Up(id, session) if *id == link => Some(*session),
            _ => None,
        };
        eventually_some("the link is up", DEADLINE, || self.recorder.events().iter().rev().find_map(of_link))
    }

    #[track_caller]
    pub(super) fn eventually_received(&self, tag: &str, payload: &str) {
        self.recorder.eventually(&format!("{payload} on {tag}"), |event| {
            matches!(event, Event::Message(_, _, name, bytes)
                if *name == channel(tag) && bytes == payload.as_bytes())
        });
    }

    #[track_caller]
    pub(super) fn eventually_away(&self, tag: &str) {
        eventually("the link is away", DEADLINE, || self.links.availability(tag).is_err());
    }

    #[track_caller]
    pub(super) fn eventually_healthy(&self) {
        eventually("the links are up", DEADLINE, || {
            self.links.health().is_ok() && self.links.missing().is_empty()
        });
    }

    pub(super) async fn stop(self) {
        self.links.stop().await;
        self.recorder.check_order();
    }
}

pub(super) fn channel(tag: &str) -> String {
    format!("tidegate:{{{tag}}}")
}

pub(super) fn cmd(words: &[&str]) -> Cmd {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(*word);
    });
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
