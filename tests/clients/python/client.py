"""A subscriber and publisher over the PyPI package `websockets`: text, binary, deflate, ping, close codes."""

import asyncio
import json
import os
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

GATEWAY = os.environ["GATEWAY"]
SOCKETS = GATEWAY.replace("http", "ws", 1)
LONG = "tide " * 2000


def publish(channel, body, content_type="text/plain"):
    request = urllib.request.Request(
        f"{GATEWAY}/v1/channels/{channel}/publish",
        data=body if isinstance(body, bytes) else body.encode(),
        headers={"authorization": "Bearer dev-key", "content-type": content_type},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


async def subscriptions():
    async with connect(f"{SOCKETS}/ws?channel=packed:a", proxy=None) as packed:
        names = [extension.name for extension in packed.protocol.extensions]
        assert names == ["permessage-deflate"], names
        for text in (LONG, "short", "", LONG):
            await asyncio.to_thread(publish, "packed:a", text)
            assert await packed.recv() == text
        await asyncio.to_thread(publish, "packed:a", b"\x00\xff", "application/octet-stream")
        assert await packed.recv() == b"\x00\xff"
        await (await packed.ping())
    assert packed.close_code == 1000, packed.close_code


async def recovery():
    seen = await asyncio.to_thread(publish, "news", "1")
    await asyncio.to_thread(publish, "news", "2")
    since = f"{seen['epoch']}:{seen['offset']}"
    async with connect(f"{SOCKETS}/ws?channel=news&since={since}", compression=None, proxy=None) as client:
        assert await client.recv() == "2"


async def echoes():
    async with connect(f"{SOCKETS}/echo", proxy=None) as echo:
        for message in (LONG, "short", "", b"", b"\x01" * 1000):
            await echo.send(message)
            assert await echo.recv() == message
        # A message in fragments.
        await echo.send(["a", "b", "c"])
        assert await echo.recv() == "abc"


async def refusal():
    try:
        async with connect(f"{SOCKETS}/ws", proxy=None):
            raise AssertionError("a subscription without a channel was accepted")
    except InvalidStatus as error:
        assert error.response.status_code == 400, error


async def main():
    await subscriptions()
    await recovery()
    await echoes()
    await refusal()
    print("ok")


asyncio.run(asyncio.wait_for(main(), 60))
