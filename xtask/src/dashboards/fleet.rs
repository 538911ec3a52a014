//! The dashboard of a whole deployment: gateways, routers and what is between them.

use super::{Dashboard, Look, Panel, Query, Row, Unit, Variable};

pub(super) const FLEET: Dashboard = Dashboard {
    file: "fleet.json",
    uid: "tidegate-fleet",
    title: "Tidegate: fleet",
    about: "All gateways and routers of a deployment. docs/metrics.md explains the metrics, docs/runbook.md the alerts.",
    selector: r#"namespace=~"$namespace", job=~"$job""#,
    variables: &[
        Variable { label: "namespace", of: "tidegate_build_info", all: true },
        Variable { label: "job", of: "tidegate_build_info", all: true },
    ],
    rows: &[OVERVIEW, CONNECTIONS, DELIVERIES, CEILING, BACKPLANE, ROUTERS],
};

const OVERVIEW: Row = Row {
    title: "Overview",
    panels: &[
        Panel {
            title: "The ceiling",
            about: "The fullest resource of any node; at 100 % nothing more goes in. docs/runbook.md says what to do.",
            look: Look::Number,
            unit: Unit::Share,
            queries: &[Query {
                expr: "topk(1, tidegate_saturation{@})",
                legend: "{{resource}} of {{instance}}",
            }],
        },
        Panel {
            title: "Gateways",
            about: "Gateways that answer scrapes.",
            look: Look::Number,
            unit: Unit::Count,
            queries: &[Query { expr: "count(tidegate_connections{@})", legend: "" }],
        },
        Panel {
            title: "Connections",
            about: "Clients connected to all gateways.",
            look: Look::Number,
            unit: Unit::Count,
            queries: &[Query { expr: "sum(tidegate_connections{@})", legend: "" }],
        },
        Panel {
            title: "Connections of the limit",
            about: "Share of the connections that the gateways take.",
            look: Look::Number,
            unit: Unit::Share,
            queries: &[Query {
                expr: "sum(tidegate_connections{@}) / sum(tidegate_connections_limit{@})",
                legend: "",
            }],
        },
        Panel {
            title: "Deliveries",
            about: "Messages written to clients, per second.",
            look: Look::Number,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum(rate(tidegate_messages_sent_total{@}[$__rate_interval]))",
                legend: "",
            }],
        },
        Panel {
            title: "Alerts",
            about: "Alerts that fire now.",
            look: Look::Number,
            unit: Unit::Count,
            queries: &[Query {
                expr: r#"count(ALERTS{alertstate="firing", alertname=~"Tidegate.*", @}) or vector(0)"#,
                legend: "",
            }],
        },
    ],
};

const CONNECTIONS: Row = Row {
    title: "Connections",
    panels: &[
        Panel {
            title: "Connections by gateway",
            about: "How clients are spread.",
            look: Look::Areas,
            unit: Unit::Count,
            queries: &[Query { expr: "tidegate_connections{@}", legend: "{{instance}}" }],
        },
        Panel {
            title: "Opened and ended",
            about: "Connections that began, and those that ended by reason, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[
                Query {
                    expr: "sum(rate(tidegate_connections_opened_total{@}[$__rate_interval]))",
                    legend: "opened",
                },
                Query {
                    expr: "sum by (reason) (rate(tidegate_disconnects_total{@}[$__rate_interval]))",
                    legend: "{{reason}}",
                },
            ],
        },
        Panel {
            title: "Handshakes by result",
            about: "Accepted and refused, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum by (result) (rate(tidegate_handshakes_total{@}[$__rate_interval]))",
                legend: "{{result}}",
            }],
        },
        Panel {
            title: "Handshake time",
            about: "From accepting the connection to the answer, TLS included.",
            look: Look::Lines,
            unit: Unit::Seconds,
            queries: &[
                Query {
                    expr: "histogram_quantile(0.5, sum by (le) (rate(tidegate_handshake_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p50",
                },
                Query {
                    expr: "histogram_quantile(0.99, sum by (le) (rate(tidegate_handshake_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p99",
                },
            ],
        },
        Panel {
            title: "Subscriptions and channels",
            about: "Subscriptions of all clients, and channels summed over the gateways.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[
                Query { expr: "sum(tidegate_subscriptions{@})", legend: "subscriptions" },
                Query { expr: "sum(tidegate_channels{@})", legend: "channels" },
            ],
        },
        Panel {
            title: "Not let in",
            about: "Failed authentication by reason, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum by (reason) (rate(tidegate_auth_failures_total{@}[$__rate_interval]))",
                legend: "{{reason}}",
            }],
        },
    ],
};

const DELIVERIES: Row = Row {
    title: "Publications and deliveries",
    panels: &[
        Panel {
            title: "Published over REST",
            about: "Publish requests by status, per second.",
            look: Look::Areas,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum by (code) (rate(tidegate_publish_requests_total{@}[$__rate_interval]))",
                legend: "{{code}}",
            }],
        },
        Panel {
            title: "Messages",
            about: "To clients and from clients, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[
                Query {
                    expr: "sum(rate(tidegate_messages_sent_total{@}[$__rate_interval]))",
                    legend: "sent",
                },
                Query {
                    expr: "sum(rate(tidegate_messages_received_total{@}[$__rate_interval]))",
                    legend: "received",
                },
            ],
        },
        Panel {
            title: "Delivery time",
            about: "Within a node, from having a publication to its write; and p99 of 5 minutes with the lag of Redis.",
            look: Look::Lines,
            unit: Unit::Seconds,
            queries: &[
                Query {
                    expr: "histogram_quantile(0.5, sum by (le) (rate(tidegate_delivery_latency_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p50 in the node",
                },
                Query {
                    expr: "histogram_quantile(0.99, sum by (le) (rate(tidegate_delivery_latency_seconds_bucket{@}[$__rate_interval])))",
                    legend: "p99 in the node",
                },
                Query { expr: "tidegate:delivery_seconds:p99_5m{@}", legend: "p99 with Redis" },
            ],
        },
        Panel {
            title: "Traffic",
            about: "Bytes to and from clients of the gateways, per second.",
            look: Look::Lines,
            unit: Unit::BytesPerSecond,
            queries: &[
                Query {
                    expr: "sum(rate(tidegate_bytes_sent_total{@}[$__rate_interval]))",
                    legend: "to clients",
                },
                Query {
                    expr: "sum(rate(tidegate_bytes_received_total{@}[$__rate_interval]))",
                    legend: "from clients",
                },
            ],
        },
        Panel {
            title: "Messages dropped",
            about: "By reason, per second; every one of them is told or has closed its connection.",
            look: Look::Areas,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum by (reason) (rate(tidegate_messages_dropped_total{@}[$__rate_interval]))",
                legend: "{{reason}}",
            }],
        },
        Panel {
            title: "Slow readers",
            about: "Clients closed and messages dropped because a client read too slowly, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query { expr: "tidegate:slow_readers:rate5m{@}", legend: "{{job}}" }],
        },
    ],
};

const CEILING: Row = Row {
    title: "What is the ceiling",
    panels: &[
        Panel {
            title: "Saturation by resource",
            about: "The fullest node for each resource.",
            look: Look::Lines,
            unit: Unit::Share,
            queries: &[Query {
                expr: "max by (job, resource) (tidegate_saturation{@})",
                legend: "{{resource}} ({{job}})",
            }],
        },
        Panel {
            title: "CPU",
            about: "Cores used by each process.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query {
                expr: "rate(process_cpu_seconds_total{@}[$__rate_interval]) and on (job, instance) tidegate_build_info{@}",
                legend: "{{job}} {{instance}}",
            }],
        },
        Panel {
            title: "Memory",
            about: "Resident memory of each process. Sockets' buffers are in the kernel and not in here.",
            look: Look::Lines,
            unit: Unit::Bytes,
            queries: &[Query {
                expr: "process_resident_memory_bytes{@} and on (job, instance) tidegate_build_info{@}",
                legend: "{{job}} {{instance}}",
            }],
        },
    ],
};

const BACKPLANE: Row = Row {
    title: "Redis",
    panels: &[
        Panel {
            title: "Gateways connected",
            about: "Gateways that can use each Redis server.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query {
                expr: "sum by (server) (tidegate_backplane_connected{@})",
                legend: "{{server}}",
            }],
        },
        Panel {
            title: "Lag",
            about: "From publishing to receiving, of a probe; the slowest gateway for each server.",
            look: Look::Lines,
            unit: Unit::Seconds,
            queries: &[Query {
                expr: "max by (server) (tidegate_backplane_lag_seconds{@})",
                legend: "{{server}}",
            }],
        },
        Panel {
            title: "Publications",
            about: "Sent to Redis and received from it by all gateways, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[
                Query {
                    expr: "sum(rate(tidegate_backplane_published_total{@}[$__rate_interval]))",
                    legend: "published",
                },
                Query {
                    expr: "sum(rate(tidegate_backplane_received_total{@}[$__rate_interval]))",
                    legend: "received",
                },
            ],
        },
        Panel {
            title: "Commands that wait",
            about: "Commands without an answer yet, over all gateways.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query {
                expr: "sum by (server) (tidegate_backplane_queue_depth{@})",
                legend: "{{server}}",
            }],
        },
        Panel {
            title: "Failures",
            about: "Connections given up and commands failed, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[
                Query {
                    expr: "sum by (reason) (rate(tidegate_backplane_reconnects_total{@}[$__rate_interval]))",
                    legend: "reconnect: {{reason}}",
                },
                Query {
                    expr: "sum by (reason) (rate(tidegate_backplane_calls_failed_total{@}[$__rate_interval]))",
                    legend: "command: {{reason}}",
                },
            ],
        },
        Panel {
            title: "Repairs and gaps",
            about: "Repairs from history by cause, and gaps that clients were told of, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[
                Query {
                    expr: "sum by (cause) (rate(tidegate_backplane_repairs_total{@}[$__rate_interval]))",
                    legend: "repair: {{cause}}",
                },
                Query {
                    expr: "sum by (reason) (rate(tidegate_backplane_gaps_total{@}[$__rate_interval]))",
                    legend: "gap told: {{reason}}",
                },
            ],
        },
    ],
};

const ROUTERS: Row = Row {
    title: "Routers",
    panels: &[
        Panel {
            title: "Gateways by state",
            about: "As the router that sees most of each state sees them.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query { expr: "max by (state) (tidegate_nodes{@})", legend: "{{state}}" }],
        },
        Panel {
            title: "Proxied connections",
            about: "Clients connected through each router.",
            look: Look::Areas,
            unit: Unit::Count,
            queries: &[Query { expr: "tidegate_proxied_connections{@}", legend: "{{instance}}" }],
        },
        Panel {
            title: "Different views",
            about: "How many different lists of members the routers have; more than 1 for long is an alert.",
            look: Look::Lines,
            unit: Unit::Count,
            queries: &[Query {
                expr: r#"count(count_values("digest", tidegate_placement_digest{@}))"#,
                legend: "views",
            }],
        },
        Panel {
            title: "Gateways asked",
            about: "What came of asking a gateway for a client, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum by (result) (rate(tidegate_upstream_connects_total{@}[$__rate_interval]))",
                legend: "{{result}}",
            }],
        },
        Panel {
            title: "Not the first gateway",
            about: "Clients not brought to the first gateway of their key, by reason, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum by (reason) (rate(tidegate_fallbacks_total{@}[$__rate_interval]))",
                legend: "{{reason}}",
            }],
        },
        Panel {
            title: "Refused by routers",
            about: "Requests that did not come to a gateway, by reason, per second.",
            look: Look::Lines,
            unit: Unit::PerSecond,
            queries: &[Query {
                expr: "sum by (reason) (rate(tidegate_refusals_total{@}[$__rate_interval]))",
                legend: "{{reason}}",
            }],
        },
    ],
};
