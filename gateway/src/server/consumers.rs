//! The consumers of this node: what they read is published as anything else is.

use std::sync::Arc;

use tidegate_backplane::{Channel, Payload, Text};
use tidegate_consumers::{Boxed, Consumers, Data, Publication, Publish, Published, Unpublished};
use tokio::runtime::Handle;

use crate::{
    app::apps::AppId,
    config::ConsumersConfig,
    event,
    node::{Node, PublishError, PublishHistory, PublishRequest},
};

/// Publishes what one consumer reads.
#[derive(Debug)]
struct Publisher {
    node: Arc<Node>,
    /// Whose channels are named.
    app: Option<Box<str>>,
}

/// Those of the configuration; they read nothing yet. `life` differs between two lives of one node.
pub(crate) fn of(config: &ConsumersConfig, node: &Arc<Node>, life: &str, runtime: Handle) -> Consumers {
    let mut consumers = Consumers::new(runtime);
    let reader = format!("{}.{life}", node.name());
    let publisher = |app: &Option<Box<str>>| -> Arc<dyn Publish> {
        // The default app's channels are those without one.
        let default = node.config().default_app.as_ref().map(AppId::as_str);
        let app = app.clone().filter(|app| Some(&**app) != default);
        Arc::new(Publisher { node: Arc::clone(node), app })
    };
    for entry in config.streams.iter() {
        consumers.stream(entry.clone(), &reader, publisher(&entry.app));
    }
    for entry in config.outboxes.iter() {
        consumers.outbox(entry.clone(), publisher(&entry.app));
    }
    consumers
}

impl Publisher {
    fn request(&self, publication: Publication) -> Result<PublishRequest, String> {
        let Publication { channel, event, data, key } = publication;
        // No name of a channel has the mark that apps are told apart by.
        let channel = Channel::new(&channel).map_err(|error| format!("channel: {error}"))?;
        let channel = AppId::channel(self.app.as_deref(), channel.name())
            .map_err(|error| format!("channel: {error}"))?;
        if let Some(event) = &event {
            event::check_name(event).map_err(|error| format!("event: {error}"))?;
        }
        let payload = match data {
            Data::Text(text) => Payload::Text(Text::from(text)),
            Data::Binary(bytes) => Payload::Binary(bytes.into()),
        };
        let (idempotency_key, history) = (Some(key), PublishHistory::Namespace);
        Ok(PublishRequest { channel, event, payload, idempotency_key, sender: None, history })
    }
}

impl Publish for Publisher {
    fn publish(&self, publication: Publication) -> Boxed<'_, Result<Published, Unpublished>> {
        Box::pin(async move {
            let request = self.request(publication).map_err(Unpublished::Never)?;
            match self.node.publish_everywhere(request).await {
                Ok(outcome) => Ok(Published { duplicate: outcome.duplicate }),
                Err(error @ PublishError::TooLarge { .. }) => Err(Unpublished::Never(error.to_string())),
                Err(error) => Err(Unpublished::Later(error.to_string())),
            }
        })
    }
}
