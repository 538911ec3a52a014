"""The server SDK for Python (PyPI `pusher`): triggers, queries, signatures; what they do is seen over `websockets`."""

import asyncio
import base64
import json
import os

import pusher
from websockets.asyncio.client import connect

A, B = os.environ["GATEWAYS"].split(",")
CALLS = set()


class Counted:
    """Passes calls on to the SDK and notes those that did not fail."""

    def __init__(self, sdk):
        self._sdk = sdk

    def __getattr__(self, name):
        method = getattr(self._sdk, name)

        def call(*words, **options):
            result = method(*words, **options)
            CALLS.add(f"Pusher.{name}()")
            return result

        return call


def server(gateway):
    host, port = gateway.removeprefix("http://").split(":")
    return Counted(
        pusher.Pusher(
            app_id="1",
            key="dev-key",
            secret="dev-secret",
            ssl=False,
            host=host,
            port=int(port),
            encryption_master_key_base64=base64.b64encode(b"\x07" * 32).decode(),
        )
    )


SERVER = server(B)


class Client:
    def __init__(self, socket):
        self.socket = socket

    async def send(self, event, data):
        await self.socket.send(json.dumps({"event": event, "data": data}))

    async def expect(self, event):
        """The next message but for counts, which must be of this event; its data, parsed as far as it is JSON."""
        message = {"event": "pusher_internal:subscription_count"}
        while message["event"] == "pusher_internal:subscription_count":
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 45))
        assert message["event"] == event, message
        return json.loads(message["data"]) if isinstance(message.get("data"), str) else message.get("data")

    async def subscribe(self, channel, auth=None):
        await self.send("pusher:subscribe", {"channel": channel, **(auth or {})})
        return await self.expect("pusher_internal:subscription_succeeded")


async def established(gateway):
    socket = await connect(gateway.replace("http", "ws", 1) + "/app/dev-key?protocol=7&client=py&version=1", proxy=None)
    client = Client(socket)
    client.id = (await client.expect("pusher:connection_established"))["socket_id"]
    return client


async def sdk(method, *words, **options):
    return await asyncio.to_thread(method, *words, **options)


async def triggers():
    client = await established(A)
    await client.subscribe("private-py", SERVER.authenticate("private-py", client.id))
    assert await sdk(SERVER.trigger, "private-py", "e", {"n": 1}) == {}
    assert await client.expect("e") == {"n": 1}
    await sdk(SERVER.trigger, "private-py", "not-for-it", {}, client.id)
    batch = [{"channel": "private-py", "name": "e", "data": {"n": 2}}, {"channel": "elsewhere", "name": "e", "data": ""}]
    assert await sdk(SERVER.trigger_batch, batch) == {}
    assert await client.expect("e") == {"n": 2}
    box = "private-encrypted-py"
    auth = SERVER.authenticate(box, client.id)
    await client.subscribe(box, {"auth": auth["auth"]})
    await sdk(SERVER.trigger, box, "e", {"hidden": True})
    assert set(await client.expect("e")) == {"nonce", "ciphertext"}
    await client.socket.close()


async def queries():
    client = await established(A)
    data = {"user_id": "py", "user_info": {"name": "Py"}}
    answer = await client.subscribe("presence-py", SERVER.authenticate("presence-py", client.id, data))
    assert answer == {"presence": {"ids": ["py"], "hash": {"py": {"name": "Py"}}, "count": 1}}, answer
    assert await sdk(SERVER.users_info, "presence-py") == {"users": [{"id": "py"}]}
    info = await sdk(SERVER.channel_info, "presence-py", ["user_count", "subscription_count"])
    assert info == {"occupied": True, "user_count": 1, "subscription_count": 1}, info
    info = await sdk(SERVER.channels_info, "presence-p", ["user_count"])
    assert info == {"channels": {"presence-py": {"user_count": 1}}}, info
    await client.socket.close()


async def users():
    client = await established(A)
    await client.send("pusher:signin", SERVER.authenticate_user(client.id, {"id": "snake"}))
    assert json.loads((await client.expect("pusher:signin_success"))["user_data"]) == {"id": "snake"}
    await client.subscribe("#server-to-user-snake", {"auth": ""})
    await sdk(SERVER.send_to_user, "snake", "e", {"to": "snake"})
    assert await client.expect("e") == {"to": "snake"}
    await client.socket.close()


async def refused():
    wrong = pusher.Pusher(app_id="1", key="dev-key", secret="no", ssl=False, host="127.0.0.1", port=int(B.rsplit(":", 1)[1]))
    try:
        await asyncio.to_thread(wrong.trigger, "c", "e", {})
        raise AssertionError("a wrong signature was taken")
    except pusher.errors.PusherForbidden:
        raise AssertionError("401 and not 403") from None
    except pusher.errors.PusherBadAuth:
        pass


async def main():
    failed = False
    for case in (triggers, queries, users, refused):
        try:
            await case()
            print(json.dumps({"case": f"python: {case.__name__}", "ok": True}))
        except Exception as error:  # Each case is told, whatever became of the one before.
            failed = True
            print(json.dumps({"case": f"python: {case.__name__}", "ok": False, "error": repr(error)}))
    print(json.dumps({"calls": sorted(CALLS)}))
    raise SystemExit(failed)


asyncio.run(main())
