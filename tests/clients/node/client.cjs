// A subscriber and publisher over the npm package `ws`: text, binary, deflate, envelope, ping, close codes.
"use strict";

const assert = require("node:assert");
const { once } = require("node:events");
const WebSocket = require("ws");

const GATEWAY = process.env.GATEWAY;
const SOCKETS = GATEWAY.replace("http", "ws");
const LONG = "tide ".repeat(2000);

async function open(path, options) {
  const socket = new WebSocket(SOCKETS + path, options);
  const messages = [];
  const waiting = [];
  socket.on("message", (data, binary) => {
    const message = binary ? data : data.toString();
    const next = waiting.shift();
    if (next) next(message);
    else messages.push(message);
  });
  await once(socket, "open");
  const next = () => (messages.length ? Promise.resolve(messages.shift()) : new Promise((resolve) => waiting.push(resolve)));
  return { socket, next };
}

async function publish(channel, body, type = "text/plain") {
  const answer = await fetch(`${GATEWAY}/v1/channels/${channel}/publish`, {
    method: "POST",
    headers: { authorization: "Bearer dev-key", "content-type": type },
    body,
  });
  assert.strictEqual(answer.status, 200);
  return answer.json();
}

async function main() {
  const plain = await open("/ws?channel=news", { perMessageDeflate: false });
  assert.strictEqual(plain.socket.extensions, "");
  await publish("news", "hello");
  assert.strictEqual(await plain.next(), "hello");
  await publish("news", Buffer.from([0, 255]), "application/octet-stream");
  assert.deepStrictEqual(await plain.next(), Buffer.from([0, 255]));

  const packed = await open("/ws?channel=packed:a", { perMessageDeflate: { threshold: 0 } });
  assert.match(packed.socket.extensions, /permessage-deflate/);
  for (const text of [LONG, "short", "", LONG]) {
    await publish("packed:a", text);
    assert.strictEqual(await packed.next(), text);
  }
  assert.ok(packed.socket._socket.bytesRead < LONG.length, `${packed.socket._socket.bytesRead} bytes: not deflated`);

  const enveloped = await open("/ws?channel=news&envelope=json");
  const { epoch, offset } = await publish("news", '{"n":1}');
  assert.deepStrictEqual(JSON.parse(await enveloped.next()), { channel: "news", epoch, offset, data: { n: 1 } });

  const echo = await open("/echo", { perMessageDeflate: { threshold: 0 } });
  for (const text of [LONG, "short", ""]) {
    echo.socket.send(text);
    assert.strictEqual(await echo.next(), text);
  }
  echo.socket.ping("p");
  const [pong] = await once(echo.socket, "pong");
  assert.strictEqual(pong.toString(), "p");

  for (const { socket } of [plain, packed, enveloped, echo]) {
    socket.close(1000, "done");
    const [code] = await once(socket, "close");
    assert.strictEqual(code, 1000);
  }
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
