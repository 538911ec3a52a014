"""Centrifugo's SDK for servers (PyPI `cent`) against one node; what it does is seen by `centrifuge-python` on another."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
import time
import traceback

from cent import (
    BatchRequest,
    BroadcastRequest,
    CentApiResponseError,
    CentUnauthorizedError,
    ChannelsRequest,
    Client as Cent,
    Disconnect,
    DisconnectRequest,
    HistoryRemoveRequest,
    HistoryRequest,
    InfoRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    StreamPosition,
    SubscribeRequest,
    UnsubscribeRequest,
)
from centrifuge import Client, ClientEventHandler, ReplyError, SubscriptionEventHandler

A, B = os.environ["GATEWAYS"].split(",")
SECRET = os.environ["SECRET"].encode()
DEADLINE_S = 45
API = Cent(f"{B}/api", "dev-key")


def token(**claims):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = {"exp": int(time.time()) + 600, **claims}
    signed = b".".join(part(json.dumps(it).encode()) for it in ({"alg": "HS256", "typ": "JWT"}, claims))
    return (signed + b"." + part(hmac.new(SECRET, signed, hashlib.sha256).digest())).decode()


class Seen(ClientEventHandler):
    """Keeps what happens to a client, as (event, channel or code, data)."""

    def __init__(self):
        self.events = []

    async def on_disconnected(self, ctx):
        self.events.append(("disconnected", ctx.code, ctx.reason))

    async def on_subscribed(self, ctx):
        position = ctx.stream_position
        self.events.append(("subscribed", ctx.channel, (ctx.data, position and position.offset)))

    async def on_unsubscribed(self, ctx):
        self.events.append(("unsubscribed", ctx.channel, None))

    async def on_publication(self, ctx):
        self.events.append(("publication", ctx.channel, ctx.pub.data))


class SeenOfSubscription(SubscriptionEventHandler):
    def __init__(self):
        self.publications = []

    async def on_publication(self, ctx):
        self.publications.append(ctx.pub)


async def until(what, condition):
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"never: {what}")
        await asyncio.sleep(0.01)
    return value


async def connected(user, node=A, subs=(), **options):
    seen = Seen()
    address = f"{node.replace('http', 'ws')}/connection/websocket"
    claims = token(sub=user, channels=["room:*"], subs={name: {} for name in subs})
    client = Client(address, events=seen, token=claims, proxy=None, **options)
    await client.connect()
    await client.ready(DEADLINE_S)
    return client, seen


def refused(request):
    try:
        getattr(API, request.api_method)(request)
    except CentApiResponseError as error:
        return error.code
    raise AssertionError(f"{request} was not refused")


async def publications_and_history():
    client, _ = await connected("ada")
    seen = SeenOfSubscription()
    subscription = client.new_subscription("news:1", events=seen)
    await subscription.subscribe()
    await subscription.ready(DEADLINE_S)
    first = API.publish(PublishRequest(channel="news:1", data={"n": 1}))
    assert first.offset == 1 and first.epoch, first
    twice = PublishRequest(channel="news:1", data={"n": 2}, idempotency_key="k", tags={"event": "e"})
    assert API.publish(twice) == API.publish(twice)
    broadcast = API.broadcast(BroadcastRequest(channels=["news:1", "plain:x"], data=[3]))
    assert [it.result.offset for it in broadcast.responses] == [3, 0], broadcast
    await until("three publications", lambda: len(seen.publications) == 3)
    assert [it.data for it in seen.publications] == [{"n": 1}, {"n": 2}, [3]]
    assert seen.publications[1].tags == {"event": "e"}
    page = API.history(HistoryRequest(channel="news:1", limit=10, since=StreamPosition(offset=1, epoch=first.epoch)))
    assert [it.data for it in page.publications] == [{"n": 2}, [3]] and page.offset == 3, page
    newest = API.history(HistoryRequest(channel="news:1", limit=1, reverse=True))
    assert [it.data for it in newest.publications] == [[3]]
    assert API.history(HistoryRequest(channel="news:1")).publications == []
    assert refused(HistoryRequest(channel="plain:x")) == 108
    assert refused(HistoryRemoveRequest(channel="plain:x")) == 108
    API.history_remove(HistoryRemoveRequest(channel="news:1"))
    removed = API.history(HistoryRequest(channel="news:1", limit=10))
    assert removed.publications == [] and (removed.offset, removed.epoch) == (3, first.epoch), removed
    assert API.publish(PublishRequest(channel="news:1", data=4)).offset == 4
    assert refused(PublishRequest(channel="a b", data=1)) == 107
    await client.disconnect()


async def presence_and_the_cluster():
    client, _ = await connected("eve")
    subscription = client.new_subscription("room:1")
    await subscription.subscribe()
    await subscription.ready(DEADLINE_S)
    there = await until("eve is there", lambda: API.presence(PresenceRequest(channel="room:1")).presence)
    assert [it.user for it in there.values()] == ["eve"]
    stats = API.presence_stats(PresenceStatsRequest(channel="room:1"))
    assert (stats.num_clients, stats.num_users) == (1, 1)
    nodes = await until("both nodes", lambda: (it := API.info(InfoRequest()).nodes) and len(it) == 2 and it)
    assert sorted(it.name for it in nodes) == ["g1", "g2"]
    channels = API.channels(ChannelsRequest(pattern="room:*")).channels
    assert channels["room:1"].num_clients == 1, channels
    replies = API.batch(
        BatchRequest(
            requests=[PublishRequest(channel="plain:b", data=1), PresenceStatsRequest(channel="room:1")], parallel=True
        )
    ).replies
    assert replies[1].num_users == 1, replies
    await client.disconnect()


async def every_command_of_a_client(use_protobuf):
    """By the client's own methods, on a node that the server's SDK does not ask."""

    def data(value):
        return json.dumps(value).encode() if use_protobuf else value

    async def code_of(awaited):
        try:
            await awaited
        except ReplyError as error:
            return error.code
        raise AssertionError("it was not refused")

    channel = f"room:all-{use_protobuf}"
    asked = []

    async def get_token():
        asked.append("connection")
        return token(sub="ada", channels=["room:*", "news:*"], publish=["news:*"], info={"n": 1})

    async def get_own_token(of):
        asked.append(of)
        return token(sub="ada", channel=of, info={"seat": 2})

    expired = token(sub="ada", exp=1)
    address = f"{A.replace('http', 'ws')}/connection/websocket"
    client = Client(address, token=expired, get_token=get_token, proxy=None, use_protobuf=use_protobuf)
    await client.connect()
    await client.ready(DEADLINE_S)
    subscription = client.new_subscription(channel, get_token=get_own_token, join_leave=True)
    await subscription.subscribe()
    await subscription.ready(DEADLINE_S)
    assert asked == ["connection", channel], asked
    there = list((await subscription.presence()).clients.values())
    assert [(it.user, it.conn_info, it.chan_info) for it in there] == [("ada", data({"n": 1}), data({"seat": 2}))], there
    stats = await client.presence_stats(channel)
    assert (stats.num_clients, stats.num_users) == (1, 1)
    own = f"news:all-{use_protobuf}"
    seen = SeenOfSubscription()
    news = client.new_subscription(own, events=seen)
    await news.subscribe()
    await news.ready(DEADLINE_S)
    for number in range(3):
        await client.publish(own, data(number))
    await until("three publications", lambda: len(seen.publications) == 3)
    assert [(it.data, it.info.user) for it in seen.publications] == [(data(number), "ada") for number in range(3)]
    history = await news.history(limit=2, reverse=True)
    assert [it.data for it in history.publications] == [data(2), data(1)] and history.offset == 3, history
    assert await code_of(subscription.publish(data(1))) == 103
    assert await code_of(client.history(f"plain:all-{use_protobuf}", limit=1)) == 108
    assert await code_of(client.rpc("sum", data([1]))) == 104
    await subscription.unsubscribe()
    while (await client.presence_stats(channel)).num_clients:
        await asyncio.sleep(0.01)
    await client.disconnect()


async def orders_reach_clients_of_another_node(use_protobuf):
    user = f"bob-{use_protobuf}"
    channel = f"news:{user}"
    client, seen = await connected(user, use_protobuf=use_protobuf)
    def data(value):
        return json.dumps(value).encode() if use_protobuf else value

    API.subscribe(SubscribeRequest(user=user, channel=channel, data={"why": 1}))
    await until("subscribed", lambda: seen.events)
    assert seen.events == [("subscribed", channel, (data({"why": 1}), 0))], seen.events
    API.publish(PublishRequest(channel=channel, data={"n": 1}))
    await until("a publication", lambda: len(seen.events) == 2)
    assert seen.events[1] == ("publication", channel, data({"n": 1})), seen.events
    API.unsubscribe(UnsubscribeRequest(user=user, channel=channel))
    await until("unsubscribed", lambda: ("unsubscribed", channel, None) in seen.events)
    API.refresh(RefreshRequest(user=user, expire_at=int(time.time()) + 600))
    API.disconnect(DisconnectRequest(user=user, disconnect=Disconnect(code=4501, reason="no more")))
    await until("disconnected", lambda: ("disconnected", 4501, "no more") in seen.events)


async def channels_of_all_nodes():
    """More than one answer of a node holds, with those that both nodes have; whichever is asked."""
    names = [f"plain:{number:03}-{'x' * 120}" for number in range(150)]
    halves = [(node, half) for node in (A, B) for half in (names[:75], names[75:])]
    clients = [(await connected("ada", subs=half, node=node))[0] for node, half in halves]
    shared = names[100]
    clients.append((await connected("bob", subs=[shared, "plain:other"], node=B))[0])
    for node in (A, B):
        api = Cent(f"{node}/api", "dev-key")
        channels = api.channels(ChannelsRequest(pattern="plain:???-*")).channels
        assert sorted(channels) == names, len(channels)
        counts = {name: channel.num_clients for name, channel in channels.items()}
        assert counts[shared] == 3 and sum(counts.values()) == 301, counts
        assert list(api.channels(ChannelsRequest(pattern="*:other")).channels) == ["plain:other"]
    for client in clients:
        await client.disconnect()


async def keys():
    for key in ("", "wrong"):
        try:
            Cent(f"{B}/api", key).info(InfoRequest())
        except CentUnauthorizedError:
            continue
        raise AssertionError(f"{key!r} was let in")


CASES = {
    "publications and history": publications_and_history,
    "presence and the cluster": presence_and_the_cluster,
    "every command of a client, in JSON": lambda: every_command_of_a_client(False),
    "every command of a client, in Protobuf": lambda: every_command_of_a_client(True),
    "orders, in JSON": lambda: orders_reach_clients_of_another_node(False),
    "orders, in Protobuf": lambda: orders_reach_clients_of_another_node(True),
    "channels of all nodes": channels_of_all_nodes,
    "keys": keys,
}


def report(line):
    print(json.dumps(line, separators=(",", ":")), flush=True)


async def main():
    failed = 0
    for name, case in CASES.items():
        try:
            await asyncio.wait_for(case(), DEADLINE_S * 2)
            report({"case": name, "ok": True})
        except Exception:
            failed += 1
            report({"case": name, "ok": False, "error": traceback.format_exc()})
    sys.exit(failed)


asyncio.run(main())
