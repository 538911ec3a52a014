"""Judges the webhooks that were posted with the verifier of the server SDK for Python."""

import json
import os
import urllib.request

import pusher

SERVER = pusher.Pusher(app_id="1", key="dev-key", secret="dev-secret")
STRANGER = pusher.Pusher(app_id="1", key="dev-key", secret="another-secret")

with urllib.request.urlopen(os.environ["INBOX"], timeout=45) as answer:
    posted = json.load(answer)

names = set()
for request in posted:
    words = (request["headers"]["x-pusher-key"], request["headers"]["x-pusher-signature"], request["body"])
    webhook = SERVER.validate_webhook(*words)
    assert webhook, request
    assert STRANGER.validate_webhook(*words) is None
    names.update(event["name"] for event in webhook["events"])
expected = {
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "client_event",
    "cache_miss",
    "subscription_count",
}
assert names == expected, names
print(json.dumps({"case": f"{len(posted)} webhooks", "ok": True}))
print(json.dumps({"calls": ["Pusher.validate_webhook()"]}))
