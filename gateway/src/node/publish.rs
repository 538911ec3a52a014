//! Publishes: they wait for room in their channel, go to the backplane together where they came together, and to this
//! node's subscribers alone where the backplane is away and the namespace says so.

use std::{mem, time::Duration};

use tidegate_backplane::{
    BackplaneError, Channel, HistoryPolicy, NewPublication, Payload, Position, Publication, Published, Sender,
};

use super::Node;
use crate::{app, config::BackplaneAway};

/// A publish as a front end asks for it.
#[derive(Debug, Clone)]
pub(crate) struct PublishRequest {
    pub channel: Channel,
    pub event: Option<Box<str>>,
    pub payload: Payload,
    pub idempotency_key: Option<Box<str>>,
    pub sender: Option<Box<Sender>>,
    pub history: PublishHistory,
}

/// What is kept of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum PublishHistory {
    /// What the channel's namespace says, or its app where the channel is of one that has a rule for it.
    #[default]
    Namespace,
    /// It is in no history and has no position.
    Never,
}

/// What became of a publish that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishOutcome {
    pub position: Option<Position>,
    /// The idempotency key was seen before, and nothing was published.
    pub duplicate: bool,
    /// The backplane was out of reach, and it went to subscribers on this node only.
    pub local: bool,
}

/// Why a publish was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("this node has more publications under way than it takes")]
    Overloaded { retry_after: Duration },
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
    #[error("the payload has {bytes} bytes, {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
}

/// What the namespace of a channel, and its app, say of its publications.
struct Terms {
    history: Option<HistoryPolicy>,
    is_local_when_away: bool,
}

/// Publications of one channel that go to the backplane together, and their payloads: as much as the channel takes
/// before its publishers wait.
const FLIGHT_MAX: usize = 64;
const FLIGHT_BYTES: usize = 64 * 1024;

/// How long a publish waits for room before it is refused. Longer than any fan-out of a healthy node takes.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// What a refused publisher is told to wait.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_secs(1);

impl Node {
    /// Publishes, after waiting for room in the channel if it has to. The answer means: in history where there
    /// is one, and on its way to every subscriber; or, where the namespace allows it and the backplane is away, to
    /// those on this node.
    pub(crate) async fn publish(&self, request: PublishRequest) -> Result<PublishOutcome, PublishError> {
        self.check_size(&request)?;
        self.wait_for_room(&request.channel).await?;
        let (publication, local) = self.terms(&request.channel).prepare(request);
        self.settle(self.backplane.publish(publication).await, local)
    }

    /// As [`publish`](Self::publish), and never to this node's subscribers alone: for who can wait until the backplane is
    /// there.
    pub(crate) async fn publish_everywhere(
        &self,
        request: PublishRequest,
    ) -> Result<PublishOutcome, PublishError> {
        self.check_size(&request)?;
        self.wait_for_room(&request.channel).await?;
        let (publication, _) = self.terms(&request.channel).prepare(request);
        Ok(self.backplane.publish(publication).await?.into())
    }

    /// As [`publish`](Self::publish), for several to one channel: they keep their order, and a flight of them waits for
    /// room, and for the backplane, as one.
    pub(crate) async fn publish_in_order(
        &self,
        requests: Vec<PublishRequest>,
    ) -> Vec<Result<PublishOutcome, PublishError>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut flight = Vec::new();
        let mut bytes = 0;
        for request in requests {
            if let Err(error) = self.check_size(&request) {
                self.send_flight(mem::take(&mut flight), &mut outcomes).await;
                outcomes.push(Err(error));
                continue;
            }
            let payload_bytes = request.payload.bytes().len();
            if flight.len() == FLIGHT_MAX || bytes + payload_bytes > FLIGHT_BYTES {
                self.send_flight(mem::take(&mut flight), &mut outcomes).await;
                bytes = 0;
            }
            bytes += payload_bytes;
            flight.push(request);
        }
        self.send_flight(flight, &mut outcomes).await;
        outcomes
    }

    async fn send_flight(
        &self,
        flight: Vec<PublishRequest>,
        outcomes: &mut Vec<Result<PublishOutcome, PublishError>>,
    ) {
        let Some(first) = flight.first() else { return };
        if let Err(error) = self.wait_for_room(&first.channel).await {
            outcomes.extend(flight.iter().map(|_| Err(error.clone())));
            return;
        }
        let terms = self.terms(&first.channel);
        let (publications, locals): (Vec<_>, Vec<_>) =
            flight.into_iter().map(|request| terms.prepare(request)).unzip();
        let results = self.backplane.publish_flight(publications).await;
        outcomes.extend(results.into_iter().zip(locals).map(|(result, local)| self.settle(result, local)));
    }

    fn check_size(&self, request: &PublishRequest) -> Result<(), PublishError> {
        let (bytes, max) = (request.payload.bytes().len(), self.limits().payload_bytes_max);
        if bytes > max { Err(PublishError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    async fn wait_for_room(&self, channel: &Channel) -> Result<(), PublishError> {
        match self.relay.interests.get(channel) {
            Some(interest) if !interest.room(ROOM_PATIENCE).await => {
                Err(PublishError::Overloaded { retry_after: OVERLOADED_RETRY_AFTER })
            }
            _ => Ok(()),
        }
    }

    /// What is said of all publications of a channel.
    fn terms(&self, channel: &Channel) -> Terms {
        let namespace = self.namespaces().of(channel);
        Terms {
            history: app::kept_of(&self.config, channel).or_else(|| namespace.history()),
            is_local_when_away: namespace.backplane_away == BackplaneAway::Local,
        }
    }

    fn settle(
        &self,
        result: Result<Published, BackplaneError>,
        local: Option<PublishRequest>,
    ) -> Result<PublishOutcome, PublishError> {
        match (result, local) {
            // Not `Unconfirmed`: that one may have been published, and would come twice.
            (Err(BackplaneError::Unavailable(_)), Some(request)) => Ok(self.publish_locally(request)),
            (result, _) => Ok(result?.into()),
        }
    }

    fn publish_locally(&self, request: PublishRequest) -> PublishOutcome {
        let PublishRequest { channel, event, payload, sender, .. } = request;
        self.relay.publish_locally(&channel, Publication { position: None, event, payload, sender });
        self.metrics.node.publishes_local.add(1);
        PublishOutcome { position: None, duplicate: false, local: true }
    }
}

impl Terms {
    /// What the backplane is given, and, where the namespace allows it, what goes to this node's subscribers without it.
    fn prepare(&self, request: PublishRequest) -> (NewPublication, Option<PublishRequest>) {
        let local = self.is_local_when_away.then(|| request.clone());
        let history = match request.history {
            PublishHistory::Namespace => self.history,
            PublishHistory::Never => None,
        };
        let PublishRequest { channel, event, payload, idempotency_key, sender, history: _ } = request;
        (NewPublication { channel, event, payload, history, idempotency_key, sender }, local)
    }
}

impl From<Published> for PublishOutcome {
    fn from(Published { position, duplicate }: Published) -> Self {
        Self { position, duplicate, local: false }
    }
}
