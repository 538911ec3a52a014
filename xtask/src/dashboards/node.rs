//! The dashboard of one node, gateway or router.

use super::{Dashboard, Look, Panel, Query, Row, Unit, Variable};

pub(super) const NODE: Dashboard = Dashboard {
    file: "node.json",
    uid: "tidegate-node",
    title: "Tidegate: node",
    about: "One gateway or router. The rows that are not of its kind are empty.",
    selector: r#"namespace=~"$namespace", instance=~"$instance""#,
    variables: &[
        Variable { label: "namespace", of: "tidegate_build_info", all: true },
        Variable { label: "instance", of: "tidegate_build_info", all: false },
    ],
    rows: &[NODE_ROW, PROCESS, CLIENTS, MESSAGES, BACKPLANE, ROUTER],
};

const NODE_ROW: Row = Row {
    title: "Node",
    panels: &[
        Panel {
            title: "Up for",
            about: "Since the process started.",
            look: Look::Number,
            unit: Unit::Seconds,
            queries: &[Query { expr: "time() - process_start_time_seconds{@}", legend: "" }],
        },
        Panel {
            title: "Version",
            about: "What runs.",
            look: Look::Name,
            unit: Unit::Count,
            queries: &[Query { expr: "tidegate_build_info{@}", legend: "{{version}} {{arch}}" }],
        },
        Panel {
            title: "Draining",
            about: "1 while it drains.",
            look: Look::Number,
            unit: Unit::Count,
            queries: &[Query { expr: "tidegate_draining{@}", legend: "" }],
        },
        Panel {
            title: "Fullest resource",
            about: "At 100 % it is the ceiling of this node.",
            look: Look::Number,
            unit: Unit::Share,
            queries: &[Query { expr: "topk(1, tidegate_saturation{@})", legend: "{{resource}}" }],
        },
        Panel {
            title: "Clients",
            about: "Clients connected to a gateway, or through a router.",
            look: Look::Number,
            unit: Unit::Count,
            queries: &[Query {
                expr: "tidegate_connections{@} or tidegate_proxied_connections{@}",
                legend: "",
            }],
        },
        Panel {
            title: "Certificate ends in",
            about: "Where this node ends TLS.",
            look: Look::Number,
            unit: Unit::Seconds,
            queries: &[Query { expr: "tidegate_tls_certificate_expiry_seconds{@} - time()", legend: "" }],
        },
    ],
};

const PROCESS: Row = Row {
    title: "Resources",
    panels: &[
        Panel {
            title: "Saturation",
            about: "Share in use of each resource.",
            look: Look::Lines,
            unit: Unit::Share,
            queries: &[Query { expr: "tidegate_saturation{@}", legend: "{{resource}}" }],
        },
        Panel {
            title: "CPU",
            about: "Cores used.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query {
                expr: "rate(process_cpu_seconds_total{@}[$__rate_interval])",
                legend: "cores",
            }],
        },
        Panel {
            title: "Memory",
            about: "Of the process, and of it what waits for slow clients.",
            look: Look::Lines,
            unit: Unit::Bytes,
            queries: &[
                Query { expr: "process_resident_memory_bytes{@}", legend: "resident" },
                Query { expr: "tidegate_send_queue_bytes{@}", legend: "send queues" },
            ],
        },
        Panel {
            title: "Descriptors",
            about: "Open, and allowed.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[
                Query { expr: "process_open_fds{@}", legend: "open" },
                Query { expr: "process_max_fds{@}", legend: "allowed" },
            ],
        },
    ],
};

const CLIENTS: Row = Row {
    title: "Gateway: clients",
    panels: &[
        Panel {
            title: "Connections",
            about: "Now, and what the node takes.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[
                Query { expr: "tidegate_connections{@}", legend: "connections" },
                Query { expr: "tidegate_connections_limit{@}", legend: "limit" },
            ],
        },
        Panel {
            title: "Ended by reason",
            about: "Connections that ended, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_disconnects_total{@}[$__rate_interval])",
                legend: "{{reason}}",
            }],
        },
        Panel {
            title: "Close frames",
            about: "Sent by the gateway, by code, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_close_frames_total{@}[$__rate_interval])",
                legend: "{{code}}",
            }],
        },
        Panel {
            title: "Handshakes",
            about: "By result, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_handshakes_total{@}[$__rate_interval])",
                legend: "{{result}}",
            }],
        },
        Panel {
            title: "Handshake time",
            about: "From accepting the connection to the answer.",
            look: Look::Heat,
            unit: Unit::Seconds,
            queries: &[Query {
                expr: "sum by (le) (increase(tidegate_handshake_seconds_bucket{@}[$__rate_interval]))",
                legend: "{{le}}",
            }],
        },
        Panel {
            title: "Age at the end",
            about: "How old connections were when they ended.",
            look: Look::Heat,
            unit: Unit::Seconds,
            queries: &[Query {
                expr: "sum by (le) (increase(tidegate_connection_duration_seconds_bucket{@}[$__rate_interval]))",
                legend: "{{le}}",
            }],
        },
        Panel {
            title: "Ping to pong",
            about: "Round trip to clients that were silent.",
            look: Look::Lines,
            unit: Unit::Seconds,
            queries: &[
                Query {
                    expr: "histogram_quantile(0.5, sum by (le) (rate(tidegate_ping_rtt_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p50",
                },
                Query {
                    expr: "histogram_quantile(0.99, sum by (le) (rate(tidegate_ping_rtt_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p99",
                },
            ],
        },
        Panel {
            title: "Broken frames",
            about: "WebSocket frames that broke the protocol, by error, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_protocol_errors_total{@}[$__rate_interval])",
                legend: "{{error}}",
            }],
        },
        Panel {
            title: "Not let in",
            about: "Failed authentication by reason, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_auth_failures_total{@}[$__rate_interval])",
                legend: "{{reason}}",
            }],
        },
    ],
};

const MESSAGES: Row = Row {
    title: "Gateway: messages",
    panels: &[
        Panel {
            title: "Messages",
            about: "To clients and from clients, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[
                Query { expr: "rate(tidegate_messages_sent_total{@}[$__rate_interval])", legend: "sent" },
                Query {
                    expr: "rate(tidegate_messages_received_total{@}[$__rate_interval])",
                    legend: "received",
                },
            ],
        },
        Panel {
            title: "Delivery time",
            about: "From having a publication to its write.",
            look: Look::Heat,
            unit: Unit::Seconds,
            queries: &[Query {
                expr: "sum by (le) (increase(tidegate_delivery_latency_seconds_bucket{@}[$__rate_interval]))",
                legend: "{{le}}",
            }],
        },
        Panel {
            title: "Fan-out time",
            about: "From taking publications of a channel to their last write.",
            look: Look::Lines,
            unit: Unit::Seconds,
            queries: &[
                Query {
                    expr: "histogram_quantile(0.5, sum by (le) (rate(tidegate_fanout_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p50",
                },
                Query {
                    expr: "histogram_quantile(0.99, sum by (le) (rate(tidegate_fanout_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p99",
                },
            ],
        },
        Panel {
            title: "Dropped",
            about: "Messages that were not delivered, by reason, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_messages_dropped_total{@}[$__rate_interval])",
                legend: "{{reason}}",
            }],
        },
        Panel {
            title: "Publish requests",
            about: "By status, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_publish_requests_total{@}[$__rate_interval])",
                legend: "{{code}}",
            }],
        },
        Panel {
            title: "Channels",
            about: "With a subscriber on this node, and their subscriptions.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[
                Query { expr: "tidegate_channels{@}", legend: "channels" },
                Query { expr: "tidegate_subscriptions{@}", legend: "subscriptions" },
            ],
        },
    ],
};

const BACKPLANE: Row = Row {
    title: "Gateway: Redis",
    panels: &[
        Panel {
            title: "Connected",
            about: "1 while commands to the server may succeed.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query { expr: "tidegate_backplane_connected{@}", legend: "{{server}}" }],
        },
        Panel {
            title: "Lag",
            about: "From publishing to receiving, of a probe.",
            look: Look::Lines,
            unit: Unit::Seconds,
            queries: &[Query { expr: "tidegate_backplane_lag_seconds{@}", legend: "{{server}}" }],
        },
        Panel {
            title: "Waiting",
            about: "Commands without an answer; more than 16 MiB of them are refused.",
            look: Look::Lines,
            unit: Unit::Bytes,
            queries: &[Query { expr: "tidegate_backplane_queue_bytes{@}", legend: "{{server}}" }],
        },
        Panel {
            title: "Subscriptions of channels",
            about: "Those that should be, and those that Redis has confirmed.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[
                Query { expr: "tidegate_backplane_subscriptions{@}", legend: "wanted" },
                Query { expr: "tidegate_backplane_subscriptions_confirmed{@}", legend: "confirmed" },
            ],
        },
        Panel {
            title: "Last loss of subscriptions",
            about: "From the first that was gone to the last that was back; 0 if there was none.",
            look: Look::Lines,
            unit: Unit::Seconds,
            queries: &[Query { expr: "tidegate_backplane_resubscribe_seconds{@}", legend: "duration" }],
        },
        Panel {
            title: "Repairs and gaps",
            about: "Repairs from history by cause, and gaps that clients were told of, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[
                Query {
                    expr: "rate(tidegate_backplane_repairs_total{@}[$__rate_interval])",
                    legend: "repair: {{cause}}",
                },
                Query {
                    expr: "rate(tidegate_backplane_gaps_total{@}[$__rate_interval])",
                    legend: "gap told: {{reason}}",
                },
            ],
        },
    ],
};

const ROUTER: Row = Row {
    title: "Router",
    panels: &[
        Panel {
            title: "Proxied connections",
            about: "Clients connected through this router.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query { expr: "tidegate_proxied_connections{@}", legend: "connections" }],
        },
        Panel {
            title: "Bytes passed on",
            about: "By direction, per second.",
            look: Look::Lines,
            unit: Unit::BytesPerSecond,
            queries: &[Query {
                expr: "rate(tidegate_bytes_total{@}[$__rate_interval])",
                legend: "{{direction}}",
            }],
        },
        Panel {
            title: "Gateways by state",
            about: "As this router sees them.",
            look: Look::Areas,
            unit: Unit::Count,
            queries: &[Query { expr: "tidegate_nodes{@}", legend: "{{state}}" }],
        },
        Panel {
            title: "Gateways asked",
            about: "What came of asking a gateway for a client, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_upstream_connects_total{@}[$__rate_interval])",
                legend: "{{result}}",
            }],
        },
        Panel {
            title: "Closed by the router",
            about: "Clients closed from here, by reason, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_cuts_total{@}[$__rate_interval])",
                legend: "{{reason}}",
            }],
        },
        Panel {
            title: "Rounds of asking for the members",
            about: "By result, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "rate(tidegate_members_refreshes_total{@}[$__rate_interval])",
                legend: "{{result}}",
            }],
        },
    ],
};
