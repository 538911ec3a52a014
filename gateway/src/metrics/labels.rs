//! The closed label sets of a gateway.

use tidegate_ops::label;
use tidegate_wire::{decoder::DecodeError, pusher::server::ErrorKind};

label!(
    /// Why a connection ended.
    DisconnectReason, "reason", {
        /// The client sent a close frame.
        ClientClosed = "client_closed",
        /// The client closed the socket without one, or it was reset.
        ClientGone = "client_gone",
        ProtocolError = "protocol_error",
        InvalidUtf8 = "invalid_utf8",
        MessageTooLarge = "message_too_large",
        PingTimeout = "ping_timeout",
        SlowReader = "slow_reader",
        RateLimit = "rate_limit",
        Gap = "gap",
        TokenExpired = "token_expired",
        Forbidden = "forbidden",
        MaxAge = "max_age",
        /// The node that it belongs to has room, and a router asked.
        Moved = "moved",
        /// By `POST /v1/disconnect`, or an app's order to terminate a user's connections.
        Ordered = "ordered",
        /// What a client of Pusher Channels asked for needs the backplane, which was away.
        Unavailable = "unavailable",
        Drain = "drain",
        Internal = "internal",
    }
);

label!(
    /// The status code of a close frame (RFC 6455 section 7.4): those of the protocol, and the gateway's own.
    CloseCode, "code", {
        Normal = "1000",
        GoingAway = "1001",
        Protocol = "1002",
        Unsupported = "1003",
        InvalidPayload = "1007",
        Policy = "1008",
        TooLarge = "1009",
        Internal = "1011",
        ServiceRestart = "1012",
        TryAgainLater = "1013",
        /// Those of Pusher Channels after which clients stay away; and those after which they come back.
        AppRefused = "4000-4009",
        Gap = "4010",
        Retry = "4100-4202",
        TokenExpired = "4401",
        Ordered = "4403",
        Other = "other",
    }
);

label!(
    /// What was wrong with what a client sent over its WebSocket.
    ProtocolError, "error", {
        Unmasked = "unmasked",
        ReservedBits = "reserved_bits",
        ReservedOpcode = "reserved_opcode",
        ControlFragmented = "control_fragmented",
        ControlOversized = "control_oversized",
        ContinuationUnexpected = "continuation_unexpected",
        ContinuationExpected = "continuation_expected",
        LengthEncoding = "length_encoding",
        ClosePayload = "close_payload",
        CloseCode = "close_code",
        InvalidUtf8 = "invalid_utf8",
        InvalidDeflate = "invalid_deflate",
        TooLarge = "too_large",
    }
);

label!(
    /// How a handshake ended.
    HandshakeResult, "result", {
        Accepted = "accepted",
        BadRequest = "bad_request",
        Unauthorized = "unauthorized",
        Forbidden = "forbidden",
        OriginRefused = "origin_refused",
        /// The head did not arrive in time.
        Timeout = "timeout",
        /// The client left before the answer.
        Abandoned = "abandoned",
        /// Connections per node.
        NodeLimit = "node_limit",
        /// Connections per address.
        AddressLimit = "address_limit",
        /// Handshakes per second.
        RateLimit = "rate_limit",
        /// Handshakes per second of one address.
        AddressRate = "address_rate",
        Draining = "draining",
        /// The application said no.
        ApplicationRefused = "application_refused",
        /// The application did not answer.
        ApplicationAway = "application_away",
        /// No descriptor was left.
        Descriptors = "descriptors",
        BackplaneUnavailable = "backplane_unavailable",
        BackplaneRefused = "backplane_refused",
        /// The connection did not begin with the PROXY protocol header that is required.
        ProxyHeader = "proxy_header",
        /// The connection does not come from a balancer that may name clients.
        ProxyPeer = "proxy_peer",
        /// No TLS session came about.
        TlsFailed = "tls_failed",
    }
);

label!(
    /// What came of an instruction, for each connection that it is for; or for a node, that could not read or answer it.
    Instructed, "result", {
        Done = "done",
        /// The connection has not said yet who it is.
        NotReady = "not_ready",
        /// The connection's protocol has no words for it.
        Unsupported = "unsupported",
        /// The node has subscribers in as many channels as it may (`limits.channels`).
        NodeFull = "node_full",
        /// The connection has as many subscriptions as it may.
        TooMany = "too_many",
        /// It is subscribed already.
        Already = "already",
        NotSubscribed = "not_subscribed",
        /// A channel's name or a position that is none.
        Invalid = "invalid",
        /// The backplane could not do what a subscription needs.
        Failed = "failed",
        /// The node could not read it: it is of another version.
        Unreadable = "unreadable",
        /// The node carried it out and had no room to gather the answer.
        Unanswered = "unanswered",
    }
);

label!(
    /// Which budget of a connection or of the node was spent.
    Budgeted, "budget", {
        /// Its part in a turn of its shard: what it sent beyond that was served after the others.
        Turn = "turn",
        /// `limits.messages_per_second`: the others waited, unread.
        Messages = "messages",
        /// `limits.inflated_bytes_per_second`: the others waited, unread.
        InflatedBytes = "inflated_bytes",
        /// `limits.subscribes_per_second`: the subscription was refused.
        Subscribes = "subscribes",
        /// `limits.channels`: the subscription was refused.
        Channels = "channels",
    }
);

label!(
    /// Why a message did not reach a subscriber, or a client's message was not taken.
    DropReason, "reason", {
        /// Policy `drop`: the queue was full.
        QueueFull = "queue_full",
        /// Policy `latest`: a newer message took its place.
        Superseded = "superseded",
        /// It waited for a connection that was closed.
        Disconnected = "disconnected",
        /// The shard's mailbox was full.
        MailboxFull = "mailbox_full",
        /// A client published faster than it may.
        RateLimit = "rate_limit",
        /// A client published what it may not.
        Forbidden = "forbidden",
        /// The publish of a client failed.
        PublishFailed = "publish_failed",
    }
);

label!(
    /// Why a client of Pusher Channels was refused a channel.
    SubscriptionRefusal, "reason", {
        Auth = "auth",
        Request = "request",
        Limit = "limit",
        Unavailable = "unavailable",
    }
);

label!(
    /// Why somebody was not let in.
    AuthFailure, "reason", {
        KeyMissing = "key_missing",
        KeyUnknown = "key_unknown",
        KeyScope = "key_scope",
        KeyChannel = "key_channel",
        /// Requests with the key come faster than it allows.
        KeyRate = "key_rate",
        Origin = "origin",
        TokenMissing = "token_missing",
        TokenInvalid = "token_invalid",
        TokenExpired = "token_expired",
        TokenRights = "token_rights",
        KeysUnavailable = "keys_unavailable",
    }
);

label!(
    /// The status of the answer to a publish request.
    PublishCode, "code", {
        Ok = "200",
        Partial = "207",
        BadRequest = "400",
        Unauthorized = "401",
        Forbidden = "403",
        Timeout = "408",
        TooLarge = "413",
        MediaType = "415",
        TooMany = "429",
        Unavailable = "503",
        Other = "other",
    }
);

impl From<DecodeError> for ProtocolError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Unmasked => Self::Unmasked,
            DecodeError::ReservedBits => Self::ReservedBits,
            DecodeError::ReservedOpcode => Self::ReservedOpcode,
            DecodeError::ControlFragmented => Self::ControlFragmented,
            DecodeError::ControlOversized => Self::ControlOversized,
            DecodeError::ContinuationUnexpected => Self::ContinuationUnexpected,
            DecodeError::ContinuationExpected => Self::ContinuationExpected,
            DecodeError::LengthEncoding => Self::LengthEncoding,
            DecodeError::ClosePayload => Self::ClosePayload,
            DecodeError::CloseCode => Self::CloseCode,
            DecodeError::InvalidUtf8 => Self::InvalidUtf8,
            DecodeError::InvalidDeflate => Self::InvalidDeflate,
            DecodeError::TooLarge => Self::TooLarge,
        }
    }
}

impl From<ErrorKind> for SubscriptionRefusal {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Auth => Self::Auth,
            ErrorKind::Request => Self::Request,
            ErrorKind::Limit => Self::Limit,
            ErrorKind::Unavailable => Self::Unavailable,
        }
    }
}

impl CloseCode {
    /// The label of a code on the wire; what else clients close with shares one.
    pub(crate) fn of(code: u16) -> Self {
        match code {
            1000 => Self::Normal,
            1001 => Self::GoingAway,
            1002 => Self::Protocol,
            1003 => Self::Unsupported,
            1007 => Self::InvalidPayload,
            1008 => Self::Policy,
            1009 => Self::TooLarge,
            1011 => Self::Internal,
            1012 => Self::ServiceRestart,
            1013 => Self::TryAgainLater,
            4000..=4009 => Self::AppRefused,
            4010 => Self::Gap,
            4100..=4202 => Self::Retry,
            4401 => Self::TokenExpired,
            4403 => Self::Ordered,
            _ => Self::Other,
        }
    }
}

impl PublishCode {
    pub(crate) fn of(status: u16) -> Self {
        match status {
            200 => Self::Ok,
            207 => Self::Partial,
            400 => Self::BadRequest,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            408 => Self::Timeout,
            413 => Self::TooLarge,
            415 => Self::MediaType,
            429 => Self::TooMany,
            503 => Self::Unavailable,
            _ => Self::Other,
        }
    }
}

label!(
    /// What became of a heartbeat that was due.
    Heartbeat, "outcome", {
        /// It was written.
        Sent = "sent",
        /// What the client was sent had been acknowledged, so none was needed.
        Spared = "spared",
        /// An answer was late, and it was not the client who was.
        PutOff = "put_off",
    }
);
