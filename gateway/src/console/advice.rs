//! What to do: one sentence for each resource that can be the ceiling, and what reasons mean.

use tidegate_ops::metrics::{Label, Resource};

/// What to do about a resource, by the label that it is scraped under. A node of another version may have others.
pub(super) fn advice(resource: &str) -> &'static str {
    match Resource::ALL.iter().find(|own| own.value() == resource) {
        Some(Resource::Descriptors) => {
            "Raise the limit of descriptors (LimitNOFILE, ulimit -n) and limits.connections with it, or add a node."
        }
        Some(Resource::Memory) => {
            "Raise the memory limit of the container, add a node, or lower limits.send_queue_bytes if queues are long."
        }
        Some(Resource::Cpu) => {
            "Add a node, or cores and --shards; a single channel that is too busy for one core is better split."
        }
        Some(Resource::AcceptQueue) => {
            "Connections come faster than they are accepted: add a node, spread reconnects, or raise net.core.somaxconn."
        }
        Some(Resource::SendQueue) => {
            "Publishers wait for fan-out: publish less or smaller messages to the busiest channel, or add a node."
        }
        Some(Resource::Recovery) => {
            "Clients that come back wait to read history: spread reconnects, add a node, or raise limits.recovery_bytes."
        }
        Some(Resource::Connections) => {
            "Add a node, or raise limits.connections if the other resources have room."
        }
        Some(Resource::Channels) => "Add a node, or raise limits.channels if the other resources have room.",
        Some(Resource::Hooks) => {
            "An application answers or takes events too slowly: give it more processes, or the hook more concurrency."
        }
        None => "See docs/runbook.md.",
    }
}

/// What a reason means, where its name does not say it all.
pub(super) fn meaning(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "node_limit" => "the node has as many connections as limits.connections allows",
        "address_limit" => "one address has as many connections as limits.connections_per_address allows",
        "rate_limit" => "faster than the limit of the node or connection allows",
        "address_rate" => "one address connects faster than limits allow",
        "descriptors" => "no file descriptor was left",
        "draining" => "the node is going away; clients come back to another one",
        "drain" => "the node went away; clients come back to another one",
        "origin_refused" | "origin" => "pages of this origin are not in auth.allowed_origins",
        "unauthorized" | "token_missing" => "no valid token was given",
        "token_invalid" => "the token's signature or claims are not what auth.jwt asks for",
        "token_expired" => "the token is past its exp",
        "token_rights" | "forbidden" => "the token does not allow this channel",
        "keys_unavailable" => "the key set of auth.jwt could not be fetched",
        "key_missing" | "401" => "no API key was given, or an unknown one",
        "key_unknown" => "the API key is none of auth.api_keys",
        "key_scope" | "403" => "the API key does not allow this",
        "backplane_unavailable" | "503" => "the backplane is away or the node is overloaded",
        "429" => "more publishes under way than the channel takes",
        "413" => "the payload is larger than limits.publish_bytes",
        "slow_reader" | "queue_full" => "the client reads slower than its channels are published to",
        "ping_timeout" => "the client did not answer a ping in time",
        "proxy_header" => "the connection did not begin with the PROXY protocol header",
        "tls_failed" => "no TLS session came about",
        "turn" => "one connection sent more than its part of a turn; it was served after the others",
        "messages" => "limits.messages_per_second",
        "subscribes" => "limits.subscribes_per_second",
        "client_gone" => "the socket closed without a close frame",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_advice_of_its_own() {
        let names = Resource::ALL.iter().map(|resource| resource.value());
        let sentences: std::collections::BTreeSet<&str> = names.clone().map(advice).collect();
        assert_eq!(sentences.len(), names.count());
        assert!(!sentences.contains(advice("unknown")));
    }
}
