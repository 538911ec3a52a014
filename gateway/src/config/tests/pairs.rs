//! Pairs of settings that contradict each other.

use super::*;

#[test]
fn settings_that_do_not_fit_together() {
    for (file, expect) in [
        (
            "[limits]\nsend_queue_bytes = '32KiB'",
            "`limits.send_queue_bytes` and `limits.message_bytes, publish_bytes` do not fit together: one message must fit in the queue",
        ),
        (
            "[limits]\nbody_bytes = '1KiB'",
            "`limits.body_bytes` and `limits.publish_bytes` do not fit together: one publication must fit in a request body",
        ),
        (
            "[limits]\npublish_bytes_per_second = '1KiB'",
            "`limits.publish_bytes_per_second` and `limits.message_bytes` do not fit together: the rate must admit one whole message",
        ),
        (
            "[apps.a]\nkey = 'k'\nsecret = 's'\nlimits.event_bytes = '2MiB'",
            "`apps.a.limits.event_bytes` and `limits.publish_bytes` do not fit together: an event is a publication",
        ),
        (
            "[apps.a]\nkey = 'k'\nsecret = 's'\nlimits.presence_user_bytes = '2MiB'",
            "`apps.a.limits.presence_user_bytes` and `limits.message_bytes` do not fit together: a user's object comes in a message",
        ),
        (
            "[apps.a]\nkey = 'k'\nsecret = 's'\nlimits.channel_name_bytes = 300",
            "`apps.a.limits.channel_name_bytes` and `200` do not fit together: no channel has a longer name",
        ),
        (
            "webhooks.queue_bytes = '1KiB'\n[apps.a]\nkey = 'k'\nsecret = 's'",
            "`apps.a.limits.event_bytes` and `webhooks.queue_bytes` do not fit together: an event must fit in the queue of a webhook",
        ),
        (
            "[limits]\npublishes_per_second = 500",
            "`limits.publishes_per_second` and `limits.messages_per_second` do not fit together: each publication of a client is a message",
        ),
        (
            "[limits]\nmessages_per_second = 100\nsubscribes_per_second = 101",
            "`limits.subscribes_per_second` and `limits.messages_per_second` do not fit together: each subscription is asked for with a message",
        ),
        (
            "[limits]\nsubscriptions = 5\nanonymous_subscriptions = 6",
            "`limits.anonymous_subscriptions` and `limits.subscriptions` do not fit together: who has no credentials has no more than others",
        ),
        (
            "[limits]\nleft_behind_bytes = '32KiB'",
            "`limits.left_behind_bytes` and `limits.message_bytes` do not fit together: what is left behind is whole messages",
        ),
        (
            "[limits]\nconnections = 5\nconnections_per_address = 6",
            "`limits.connections_per_address` and `limits.connections` do not fit together: one address has no more connections than all",
        ),
        (
            "limits.connections = 5\n[apps.a]\nkey = 'k'\nsecret = 's'\nlimits.connections = 6",
            "`apps.a.limits.connections` and `limits.connections` do not fit together: an app has no more connections than its node",
        ),
        (
            "limits.messages_per_second = 20\n[apps.a]\nkey = 'k'\nsecret = 's'\nlimits.client_events_per_second = 21",
            "`apps.a.limits.client_events_per_second` and `limits.messages_per_second` do not fit together: each event of a client is a message",
        ),
        (
            "[limits]\nsubscriptions = 50\nchannels = 20",
            "`limits.subscriptions` and `limits.channels` do not fit together: one connection has no more channels than its node",
        ),
        (
            "[limits]\nhandshakes_per_second = 10\naddress_handshakes_per_second = 11",
            "`limits.address_handshakes_per_second` and `limits.handshakes_per_second` do not fit together: one address has no more handshakes than all",
        ),
        (
            "[limits]\nhead_bytes = 100",
            "`limits.head_bytes` and `1KiB` do not fit together: a browser's request needs that",
        ),
        (
            "[limits]\nhandshake_timeout = '0s'",
            "`limits.handshake_timeout` and `0s` do not fit together: nobody answers in no time",
        ),
        (
            "[heartbeat]\ntimeout = '0s'",
            "`heartbeat.timeout` and `0s` do not fit together: nobody answers in no time",
        ),
        (
            "[webhooks]\nretry_wait = '2m'\nretry_for = '1m'",
            "`webhooks.retry_wait` and `webhooks.retry_for` do not fit together: the first repetition must come within it",
        ),
        (
            "[namespaces.chat]\nhistory_size = 10",
            "`namespaces.chat.history_size` and `namespaces.chat.history_age` do not fit together: history needs both to be above zero, or neither",
        ),
    ] {
        refused_file(file, expect);
    }
    // Nobody said how large the events of this app may be, or how many a client may publish or subscribe to.
    let file = "limits.message_bytes = '4KiB'\nlimits.messages_per_second = 5\nlimits.subscriptions = 5\n\
                [apps.a]\nkey = 'k'\nsecret = 's'";
    Given { file, ..Given::default() }.config();
}

/// `--dev` lifts some limits; whoever lowers another one there has not contradicted himself.
#[test]
fn what_dev_lifts_gives_way() {
    let flags = [(flags::DEV, "true")];
    let config = Given { flags: &flags, file: "[limits]\nsubscriptions = 2", ..Given::default() }.config();
    assert_eq!(config.limits.subscriptions, 2);
}
