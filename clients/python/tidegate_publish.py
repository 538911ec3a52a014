"""Publishes to Tidegate with Python's standard library alone: copy this file.

    from tidegate_publish import Tidegate
    gate = Tidegate("https://gate.example.org", key="…")
    gate.publish("news", {"score": "1:0"}, event="goal")

From a shell, with the key in TIDEGATE_KEY:  python3 tidegate_publish.py http://127.0.0.1:8000 news hello
"""

import http.client
import json
import os
import random
import sys
import time
import urllib.parse


class Refused(Exception):
    """The server's answer, which is not 200: `status` and the problem document's `detail`."""

    def __init__(self, status, detail):
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


class Tidegate:
    """One kept-alive connection; use one for each thread."""

    def __init__(self, url, key, timeout=10, tries=5):
        parts = urllib.parse.urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.netloc, timeout=timeout)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._tries = tries

    def publish(self, channels, data, event=None):
        """To one channel or a list of them. Tried again where the server asks for it or the connection breaks: the key of
        the request keeps it from being published twice."""
        body = {"channels": [channels] if isinstance(channels, str) else list(channels), "data": data}
        if event is not None:
            body["event"] = event
        body["idempotency_key"] = f"{random.getrandbits(96):024x}"
        return self._post("/v1/publish", json.dumps(body).encode())

    def _post(self, path, body):
        for attempt in range(self._tries):
            is_last = attempt + 1 == self._tries
            wait = random.uniform(0.5, 1) * 0.2 * 2**attempt
            try:
                self._connection.request("POST", self._prefix + path, body, self._headers)
                answer = self._connection.getresponse()
                text = answer.read()
            except (http.client.HTTPException, OSError):
                self._connection.close()
                if is_last:
                    raise
            else:
                if answer.status == 200:
                    return json.loads(text)
                if answer.status not in (429, 502, 503) or is_last:
                    raise Refused(answer.status, _detail(text))
                wait = max(wait, float(answer.getheader("retry-after") or 0))
            time.sleep(wait)
        raise ValueError("tries must be at least 1")


def _detail(text):
    try:
        problem = json.loads(text)
        return problem.get("detail") or problem.get("title")
    except (ValueError, AttributeError):
        return text.decode(errors="replace")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: tidegate_publish.py URL CHANNEL TEXT   (the API key is read from TIDEGATE_KEY)")
    gate = Tidegate(sys.argv[1], os.environ.get("TIDEGATE_KEY", "dev-key"))
    print(json.dumps(gate.publish(sys.argv[2], sys.argv[3])))
