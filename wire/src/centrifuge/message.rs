//! The messages, for both encodings. They are written by hand, so that no compiler of Protobuf is needed; names and
//! numbers are those of the protocol. A field that is not here is one that this gateway neither reads nor sends.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::field::Field;

/// Declares messages: each field with its type in Rust, its type in Protobuf and its number.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $name:ident {
            $( $(#[$field_doc:meta])* $field:ident: $type:ty = ($($kind:tt)*) $tag:tt, )*
        }
    )*) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(
                $(#[$field_doc])*
                #[prost($($kind)*, tag = $tag)]
                #[serde(
                    skip_serializing_if = "Field::is_zero",
                    serialize_with = "Field::write",
                    deserialize_with = "Field::read"
                )]
                pub $field: $type,
            )*
        }
    )* };
}

messages! {
    /// What a client asks. One of the requests is there; none at all, and no `id`, is a pong.
    Command {
        id: u32 = (uint32) "1",
        connect: Option<Box<ConnectRequest>> = (message, optional, boxed) "4",
        subscribe: Option<Box<SubscribeRequest>> = (message, optional, boxed) "5",
        unsubscribe: Option<Box<ChannelRequest>> = (message, optional, boxed) "6",
        publish: Option<Box<PublishRequest>> = (message, optional, boxed) "7",
        presence: Option<Box<ChannelRequest>> = (message, optional, boxed) "8",
        presence_stats: Option<Box<ChannelRequest>> = (message, optional, boxed) "9",
        history: Option<Box<HistoryRequest>> = (message, optional, boxed) "10",
        ping: Option<Empty> = (message, optional) "11",
        send: Option<Box<DataMessage>> = (message, optional, boxed) "12",
        rpc: Option<Box<RpcRequest>> = (message, optional, boxed) "13",
        refresh: Option<Box<RefreshRequest>> = (message, optional, boxed) "14",
        sub_refresh: Option<Box<SubRefreshRequest>> = (message, optional, boxed) "15",
    }

    Empty {}

    ConnectRequest {
        token: String = (string) "1",
        data: Vec<u8> = (bytes = "vec") "2",
        /// Subscriptions of the server to recover.
        subs: BTreeMap<String, SubscribeRequest> = (btree_map = "string, message") "3",
        name: String = (string) "4",
        version: String = (string) "5",
        headers: BTreeMap<String, String> = (btree_map = "string, string") "6",
    }

    SubscribeRequest {
        channel: String = (string) "1",
        token: String = (string) "2",
        recover: bool = (bool) "3",
        /// Empty: of whatever epoch the channel has.
        epoch: String = (string) "6",
        offset: u64 = (uint64) "7",
        data: Vec<u8> = (bytes = "vec") "8",
        positioned: bool = (bool) "9",
        recoverable: bool = (bool) "10",
        join_leave: bool = (bool) "11",
        delta: String = (string) "12",
        /// Bits; see [`FLAG_REJECT_UNRECOVERED`].
        flag: i64 = (int64) "14",
        /// Other than 0: a kind of subscription beside that to a stream of publications.
        r#type: i32 = (int32) "15",
    }

    /// A command that needs a channel and nothing else.
    ChannelRequest {
        channel: String = (string) "1",
    }

    PublishRequest {
        channel: String = (string) "1",
        data: Vec<u8> = (bytes = "vec") "2",
        /// Other than 0: not into the stream of the channel.
        r#type: i32 = (int32) "3",
    }

    HistoryRequest {
        channel: String = (string) "1",
        /// 0: only where the channel stands. Negative: as many as there are.
        limit: i32 = (int32) "7",
        since: Option<StreamPosition> = (message, optional) "8",
        reverse: bool = (bool) "9",
    }

    StreamPosition {
        offset: u64 = (uint64) "1",
        epoch: String = (string) "2",
    }

    /// Data and nothing else: what a client sends without awaiting an answer, and what it is sent.
    DataMessage {
        data: Vec<u8> = (bytes = "vec") "1",
    }

    RpcRequest {
        data: Vec<u8> = (bytes = "vec") "1",
        method: String = (string) "2",
    }

    RefreshRequest {
        token: String = (string) "1",
    }

    SubRefreshRequest {
        channel: String = (string) "1",
        token: String = (string) "2",
        /// Other than 0: not about the token.
        r#type: i32 = (int32) "5",
    }

    /// The answer to the command of that `id`; with a `push` and without `id` what the server says by itself; with
    /// nothing at all a ping.
    Reply {
        id: u32 = (uint32) "1",
        error: Option<Error> = (message, optional) "2",
        push: Option<Box<Push>> = (message, optional, boxed) "4",
        connect: Option<Box<ConnectResult>> = (message, optional, boxed) "5",
        subscribe: Option<Box<SubscribeResult>> = (message, optional, boxed) "6",
        unsubscribe: Option<Empty> = (message, optional) "7",
        publish: Option<Empty> = (message, optional) "8",
        presence: Option<PresenceResult> = (message, optional) "9",
        presence_stats: Option<PresenceStatsResult> = (message, optional) "10",
        history: Option<HistoryResult> = (message, optional) "11",
        ping: Option<Empty> = (message, optional) "12",
        rpc: Option<DataMessage> = (message, optional) "13",
        refresh: Option<RefreshResult> = (message, optional) "14",
        sub_refresh: Option<SubRefreshResult> = (message, optional) "15",
    }

    Error {
        code: u32 = (uint32) "1",
        message: String = (string) "2",
        temporary: bool = (bool) "3",
    }

    ConnectResult {
        client: String = (string) "1",
        version: String = (string) "2",
        expires: bool = (bool) "3",
        /// Seconds.
        ttl: u32 = (uint32) "4",
        data: Vec<u8> = (bytes = "vec") "5",
        subs: Vec<SubscribeEntry> = (message, repeated) "6",
        /// Seconds between two pings of the server.
        ping: u32 = (uint32) "7",
        /// Whether the client answers them.
        pong: bool = (bool) "8",
        /// Names the connection to whom it sends its commands by requests of their own.
        session: String = (string) "9",
        node: String = (string) "10",
    }

    /// The same where it is pushed: its numbers are others.
    Connect {
        client: String = (string) "1",
        version: String = (string) "2",
        data: Vec<u8> = (bytes = "vec") "3",
        subs: Vec<SubscribeEntry> = (message, repeated) "4",
        expires: bool = (bool) "5",
        ttl: u32 = (uint32) "6",
        ping: u32 = (uint32) "7",
        pong: bool = (bool) "8",
        session: String = (string) "9",
        node: String = (string) "10",
    }

    /// An entry of a map, as Protobuf has it. The value is there also when it says nothing: readers of one without a value
    /// may have none.
    SubscribeEntry {
        key: String = (string) "1",
        value: Option<SubscribeResult> = (message, optional) "2",
    }

    SubscribeResult {
        expires: bool = (bool) "1",
        ttl: u32 = (uint32) "2",
        recoverable: bool = (bool) "3",
        epoch: String = (string) "6",
        publications: Vec<Publication> = (message, repeated) "7",
        recovered: bool = (bool) "8",
        offset: u64 = (uint64) "9",
        positioned: bool = (bool) "10",
        data: Vec<u8> = (bytes = "vec") "11",
        was_recovering: bool = (bool) "12",
        /// What follows may be told by how it differs.
        delta: bool = (bool) "13",
    }

    PresenceResult {
        presence: BTreeMap<String, ClientInfo> = (btree_map = "string, message") "1",
    }

    PresenceStatsResult {
        num_clients: u32 = (uint32) "1",
        num_users: u32 = (uint32) "2",
    }

    HistoryResult {
        publications: Vec<Publication> = (message, repeated) "1",
        epoch: String = (string) "2",
        offset: u64 = (uint64) "3",
    }

    RefreshResult {
        client: String = (string) "1",
        version: String = (string) "2",
        expires: bool = (bool) "3",
        ttl: u32 = (uint32) "4",
    }

    SubRefreshResult {
        expires: bool = (bool) "1",
        ttl: u32 = (uint32) "2",
    }

    Push {
        channel: String = (string) "2",
        r#pub: Option<Box<Publication>> = (message, optional, boxed) "4",
        join: Option<Info> = (message, optional) "5",
        leave: Option<Info> = (message, optional) "6",
        unsubscribe: Option<Unsubscribe> = (message, optional) "7",
        message: Option<DataMessage> = (message, optional) "8",
        subscribe: Option<Subscribe> = (message, optional) "9",
        /// What a client is answered that sends no commands.
        connect: Option<Box<Connect>> = (message, optional, boxed) "10",
        disconnect: Option<Disconnect> = (message, optional) "11",
        refresh: Option<Refresh> = (message, optional) "12",
    }

    Publication {
        data: Vec<u8> = (bytes = "vec") "4",
        /// The client that published it, if it was one.
        info: Option<ClientInfo> = (message, optional) "5",
        offset: u64 = (uint64) "6",
        tags: BTreeMap<String, String> = (btree_map = "string, string") "7",
        /// `data` is how it differs from that of the publication before it.
        delta: bool = (bool) "8",
        epoch: String = (string) "14",
    }

    ClientInfo {
        user: String = (string) "1",
        client: String = (string) "2",
        conn_info: Vec<u8> = (bytes = "vec") "3",
        chan_info: Vec<u8> = (bytes = "vec") "4",
    }

    /// Who came or went.
    Info {
        info: Option<ClientInfo> = (message, optional) "1",
    }

    /// A subscription of the server has begun.
    Subscribe {
        recoverable: bool = (bool) "1",
        epoch: String = (string) "4",
        offset: u64 = (uint64) "5",
        positioned: bool = (bool) "6",
        data: Vec<u8> = (bytes = "vec") "7",
    }

    Unsubscribe {
        code: u32 = (uint32) "2",
        reason: String = (string) "3",
    }

    Disconnect {
        code: u32 = (uint32) "1",
        reason: String = (string) "2",
        reconnect: bool = (bool) "3",
    }

    Refresh {
        expires: bool = (bool) "1",
        ttl: u32 = (uint32) "2",
    }

    /// A frame of commands of a connection that cannot carry them itself.
    EmulationRequest {
        node: String = (string) "1",
        session: String = (string) "2",
        /// The frame; in JSON a string that holds it.
        data: Vec<u8> = (bytes = "vec") "3",
    }
}

/// In [`SubscribeRequest::flag`]: a recovery that fails is an error, not a subscription from now on.
pub const FLAG_REJECT_UNRECOVERED: i64 = 2;

impl From<ConnectResult> for Connect {
    fn from(result: ConnectResult) -> Self {
        let ConnectResult { client, version, expires, ttl, data, subs, ping, pong, session, node } = result;
        Self { client, version, data, subs, expires, ttl, ping, pong, session, node }
    }
}

impl<'de> Field<'de> for Vec<Publication> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize(serializer)
    }

    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Self>::deserialize(deserializer)?.unwrap_or_default())
    }
}

/// In JSON they are an object.
impl<'de> Field<'de> for Vec<SubscribeEntry> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|entry| (&entry.key, &entry.value)))
    }

    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Option::<BTreeMap<String, SubscribeResult>>::deserialize(deserializer)?;
        let entry = |(key, value)| SubscribeEntry { key, value: Some(value) };
        Ok(entries.unwrap_or_default().into_iter().map(entry).collect())
    }
}
