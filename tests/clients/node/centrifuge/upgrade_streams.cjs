// Clients that are told over an HTTP answer, and those that only listen, on a gateway that is replaced again and again while
// numbers are published: nobody is closed, nothing is missed, doubled or out of order, and each can go on to ask.
"use strict";

const WebSocket = require("ws");
const kit = require("./kit.cjs");
const { assert, at, check, connected, encoded, report, subscribed, token, until } = kit;

const GATEWAY = process.env.GATEWAYS;
const ROUNDS = 3;
const AT_LEAST = 20;
const LISTENED = "news:server";

const say = (what) => console.log(JSON.stringify(what));
const numbers = (count) => Array.from({ length: count }, (_, number) => number);
const claims = { sub: "ada", channels: ["room:*"], publish: ["room:*"] };

// One that sends its commands by requests of their own.
async function emulated(transport) {
  const options = { emulationEndpoint: at(GATEWAY, "/emulation"), token: token(claims) };
  return connected(GATEWAY, { transports: [{ transport, endpoint: at(GATEWAY, `/connection/${transport}`) }], ...options });
}

// One that sends nothing: what it is told of publications, and whether it was closed.
async function listening(way) {
  const first = JSON.stringify({ token: token({ ...claims, subs: { [LISTENED]: {} } }) });
  const told = { way, got: [], is_open: false, is_closed: false };
  const take = (text) => {
    const message = JSON.parse(text);
    if (message.connect) told.is_open = true;
    if (message.pub) told.got.push(message.pub.data);
  };
  const path = at(GATEWAY, `/connection/${way}`);
  if (way === "uni_websocket") {
    const socket = new WebSocket(path.replace("http", "ws"));
    socket.on("open", () => socket.send(first));
    socket.on("message", (data) => take(data.toString()));
    socket.on("close", () => (told.is_closed = true));
  } else {
    const answer =
      way === "uni_sse" ? await fetch(`${path}?cf_connect=${encodeURIComponent(first)}`) : await fetch(path, { method: "POST", body: first });
    (async () => {
      let rest = "";
      for await (const chunk of answer.body) {
        rest += Buffer.from(chunk).toString();
        const lines = rest.split("\n");
        rest = lines.pop();
        for (const line of lines) {
          const text = line.replace(/^data: ?/, "").trim();
          if (text.startsWith("{")) take(text);
        }
      }
    })().finally(() => (told.is_closed = true));
  }
  await until(`${way} is open`, () => told.is_open);
  return told;
}

check("streams stay while the gateway is replaced", async () => {
  const asking = await Promise.all(["http_stream"].map(emulated));
  const told = await Promise.all(asking.map((made) => subscribed(made, "news:a")));
  const listeners = await Promise.all(["uni_websocket", "uni_http_stream", "uni_sse"].map(listening));
  const signs = await subscribed(await connected(GATEWAY), "plain:signs");
  const lists = [...told.map(({ got }) => got), ...listeners.map(({ got }) => got)];
  const more = async () => {
    const wanted = lists.map((list) => list.length + AT_LEAST);
    await until("more", () => lists.every((list, at) => list.length >= wanted[at]));
  };
  say({ begun: true });
  for (let round = 1; round <= ROUNDS; round++) {
    await more();
    say({ upgrade: round });
    await until("it was replaced", () => signs.got.length === round);
    await more();
    // Its session is known to the next process.
    for (const made of asking) await made.publish(`room:${round}`, encoded(round));
  }
  say({ end: true });
  await until("the last", () => signs.got.length > ROUNDS);
  const total = signs.got[ROUNDS];
  for (const list of lists) {
    await until("all numbers", () => list.length >= total);
    assert.deepStrictEqual(list, numbers(total));
  }
  for (const made of asking) assert.deepStrictEqual(made.seen.map(({ event }) => event), ["connecting", "connected"]);
  for (const { way, is_closed } of listeners) assert.strictEqual(is_closed, false, way);
});

report();
