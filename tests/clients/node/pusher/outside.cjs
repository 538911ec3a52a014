// Where the Pusher protocol meets the others: raw WebSockets, event streams and REST share an app's channels.
"use strict";

const WebSocket = require("ws");
const { assert, check, client, of, report, server, subscribe, until } = require("./kit.cjs");

const [A, B] = process.env.GATEWAYS.split(",");
const serverB = server(B);

async function publish(body) {
  const answer = await fetch(`${B}/v1/publish`, {
    method: "POST",
    headers: { authorization: "Bearer dev-key", "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.strictEqual(answer.status, 200, await answer.clone().text());
}

function raw(path) {
  const messages = [];
  const socket = new WebSocket(A.replace("http", "ws") + path);
  socket.on("message", (data) => messages.push(data.toString()));
  return new Promise((resolve, reject) => {
    socket.on("open", () => resolve({ socket, messages }));
    socket.on("error", reject);
  });
}

// Events of a stream as [event, data].
async function stream(path) {
  const abort = new AbortController();
  const answer = await fetch(A + path, { signal: abort.signal });
  assert.strictEqual(answer.status, 200);
  const messages = [];
  const read = async () => {
    let text = "";
    for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
      text += piece;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const field = (name) => block.match(new RegExp(`^${name}: ?(.*)$`, "m"))?.[1];
        if (field("data") !== undefined) messages.push([field("event"), field("data")]);
      }
    }
  };
  read().catch(() => {});
  return { messages, close: () => abort.abort() };
}

check("a trigger of the server SDK reaches raw WebSockets and event streams", async () => {
  const verbatim = await raw("/ws?channel=shared-out");
  const enveloped = await raw("/ws?channel=shared-out&envelope=json");
  const events = await stream("/sse?channel=shared-out");
  await serverB.trigger("shared-out", "news", { n: 1 });
  await until("all three", () => verbatim.messages.length && enveloped.messages.length && events.messages.length);
  assert.deepStrictEqual(verbatim.messages, ['{"n":1}']);
  const envelope = JSON.parse(enveloped.messages[0]);
  assert.deepStrictEqual([envelope.channel, envelope.event, envelope.data], ["shared-out", "news", { n: 1 }]);
  assert.deepStrictEqual(events.messages, [["news", '{"n":1}']]);
  for (const { socket } of [verbatim, enveloped]) socket.close();
  events.close();
});

check("a REST publish with an event, and one without, reach pusher-js", async () => {
  const channel = await subscribe(await client(A), "shared-in");
  await publish({ channels: ["shared-in"], event: "news", data: { n: 1 } });
  await publish({ channels: ["shared-in"], data: "plain" });
  await until("both", () => of(channel, "message").length === 1);
  assert.deepStrictEqual(of(channel, "news"), [{ n: 1 }]);
  assert.deepStrictEqual(of(channel, "message"), ["plain"]);
});

check("a raw WebSocket's own message reaches pusher-js", async () => {
  const channel = await subscribe(await client(B), "shared-up");
  const { socket } = await raw("/ws?channel=shared-up");
  socket.send("from a raw client");
  const rest = () => of(channel, "message");
  // Raw clients may publish only where the namespace says so; a REST publish is the mark.
  await publish({ channels: ["shared-up"], data: "mark" });
  await until("the mark", () => rest().includes("mark"));
  assert.ok(rest().every((text) => ["from a raw client", "mark"].includes(text)));
  socket.close();
});

check("a cache channel keeps what REST publishes too", async () => {
  await publish({ channels: ["cache-shared"], event: "state", data: { on: true } });
  const channel = await subscribe(await client(A), "cache-shared");
  await until("the replay", () => of(channel, "state").length === 1);
  assert.deepStrictEqual(of(channel, "state"), [{ on: true }]);
  assert.strictEqual(of(channel, "pusher:cache_miss").length, 0);
});

report();
