"""Prints the golden frames of Centrifugo's protocol (`wire/src/centrifuge/frame/golden.tsv`): each message in JSON, and as the
Protobuf that the messages of `centrifuge-python` make of it, in hexadecimal, without its length."""

import json

from centrifuge.protocol import client_pb2

INFO = {"user": "ada", "client": "g1.k3-0-7-1", "conn_info": {"n": 1}}
PUBLICATION = {"data": {"é": [1, "𝄞"]}, "info": INFO, "offset": 300, "tags": {"event": "goal"}}
POSITION = {"offset": 18446744073709551615, "epoch": "k3"}
SUBSCRIBED = {
    "expires": True,
    "ttl": 4294967295,
    "recoverable": True,
    "epoch": "k3",
    "publications": [PUBLICATION, {"data": "a string", "offset": 301, "delta": True}],
    "recovered": True,
    "offset": 299,
    "positioned": True,
    "data": {"first": 1},
    "was_recovering": True,
    "delta": True,
}
CONNECTED = {
    "client": "c",
    "version": "v",
    "expires": True,
    "ttl": 5,
    "data": {"hi": 1},
    "subs": {"news": {"recoverable": True, "epoch": "k3"}},
    "ping": 25,
    "pong": True,
    "session": "s",
    "node": "g1",
}

# In the order in which a push has them.
PUSHED = ("client", "version", "data", "subs", "expires", "ttl", "ping", "pong", "session", "node")

COMMANDS = [
    {"id": 1, "connect": {"token": "t", "data": {"a": 1}, "subs": {"news": {"recover": True, "epoch": "k3", "offset": 7}}, "name": "js", "version": "5", "headers": {"a": "b"}}},
    {"id": 2, "subscribe": {"channel": "news", "token": "t", "recover": True, "epoch": "k3", "offset": 300, "data": [1], "positioned": True, "recoverable": True, "join_leave": True, "delta": "fossil", "flag": 2}},
    {"id": 3, "unsubscribe": {"channel": "news"}},
    {"id": 4, "publish": {"channel": "news", "data": {"n": 1}}},
    {"id": 5, "presence": {"channel": "news"}},
    {"id": 6, "presence_stats": {"channel": "news"}},
    {"id": 7, "history": {"channel": "news", "limit": -1, "since": POSITION, "reverse": True}},
    {"id": 8, "ping": {}},
    {"send": {"data": {"n": 1}}},
    {"id": 4294967295, "rpc": {"data": {"n": 1}, "method": "m"}},
    {"id": 9, "refresh": {"token": "t"}},
    {"id": 10, "sub_refresh": {"channel": "news", "token": "t"}},
    {},
]

REPLIES = [
    {"id": 1, "error": {"code": 111, "message": "too many requests", "temporary": True}},
    {"id": 2, "connect": CONNECTED},
    {"id": 3, "subscribe": SUBSCRIBED},
    {"id": 4, "unsubscribe": {}},
    {"id": 5, "publish": {}},
    {"id": 6, "presence": {"presence": {"c": INFO}}},
    {"id": 7, "presence_stats": {"num_clients": 3, "num_users": 2}},
    {"id": 8, "history": {"publications": [PUBLICATION], "epoch": "k3", "offset": 300}},
    {"id": 9, "ping": {}},
    {"id": 10, "rpc": {"data": [1]}},
    {"id": 11, "refresh": {"client": "c", "version": "v", "expires": True, "ttl": 5}},
    {"id": 12, "sub_refresh": {"expires": True, "ttl": 5}},
    {},
]

PUSHES = [
    {"channel": "news", "pub": PUBLICATION},
    {"channel": "news", "join": {"info": INFO}},
    {"channel": "news", "leave": {"info": {"user": "ada", "client": "c"}}},
    {"channel": "news", "unsubscribe": {"code": 2500, "reason": "insufficient state"}},
    {"message": {"data": {"n": 1}}},
    {"channel": "news", "subscribe": {"recoverable": True, "epoch": "k3", "offset": 7, "positioned": True, "data": {"n": 1}}},
    {"connect": {name: CONNECTED[name] for name in PUSHED}},
    {"disconnect": {"code": 3001, "reason": "shutdown", "reconnect": True}},
    {"refresh": {"expires": True, "ttl": 5}},
]


def text(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def fill(message, fields):
    message.SetInParent()
    for name, value in fields.items():
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        entry = descriptor.message_type
        if entry is not None and entry.GetOptions().map_entry:
            for key, item in value.items():
                if entry.fields_by_name["value"].message_type is None:
                    getattr(message, name)[key] = item
                else:
                    fill(getattr(message, name)[key], item)
        elif entry is not None and isinstance(value, list):
            for item in value:
                fill(getattr(message, name).add(), item)
        elif entry is not None:
            fill(getattr(message, name), value)
        else:
            setattr(message, name, text(value).encode() if descriptor.type == descriptor.TYPE_BYTES else value)
    return message


for kind, all_of_it in (("Command", COMMANDS), ("Reply", REPLIES + [{"push": push} for push in PUSHES])):
    for fields in all_of_it:
        message = fill(getattr(client_pb2, kind)(), fields)
        print(kind, text(fields), message.SerializeToString(deterministic=True).hex(), sep="\t")
