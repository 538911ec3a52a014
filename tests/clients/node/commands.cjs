// Commands on an open connection: subscribe with positions, publish, presence, history, tokens, and what is refused.
"use strict";

const assert = require("node:assert");
const { createHmac } = require("node:crypto");
const { once } = require("node:events");
const WebSocket = require("ws");

const GATEWAY = process.env.GATEWAY;
const NOW = Math.floor(Date.now() / 1000);

function token(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
  return `${signed}.${createHmac("sha256", process.env.SECRET).update(signed).digest("base64url")}`;
}

// A connection whose messages are read one by one; `ask` sends a command and gives the next message that has its id.
async function open(query) {
  const socket = new WebSocket(`${GATEWAY.replace("http", "ws")}/ws?envelope=json${query}`);
  const messages = [];
  const waiting = [];
  socket.on("message", (data) => {
    messages.push(JSON.parse(data.toString()));
    while (waiting.length && waiting[0]()) waiting.shift();
  });
  await once(socket, "open");
  const find = (wanted) =>
    new Promise((resolve) => {
      const look = () => {
        const at = messages.findIndex(wanted);
        if (at < 0) return false;
        resolve(messages.splice(at, 1)[0]);
        return true;
      };
      if (!look()) waiting.push(look);
    });
  let last = 0;
  const ask = (command) => {
    last += 1;
    const id = last;
    socket.send(JSON.stringify({ ...command, id }));
    return find((message) => message.id === id);
  };
  const publication = (channel) => find((message) => message.channel === channel && "data" in message);
  const send = (text) => socket.send(text);
  return { socket, ask, publication, send, error: () => find((message) => message.error && !("id" in message)) };
}

// The connection ends when the token does, and the leeway for clocks that differ.
function ends({ expires }, at) {
  assert.ok(expires >= at && expires <= at + 60, `${expires} is about ${at}`);
}

async function publish(channel, body) {
  const answer = await fetch(`${GATEWAY}/v1/channels/${channel}/publish`, {
    method: "POST",
    headers: { authorization: `Bearer ${process.env.API_KEY}`, "content-type": "text/plain" },
    body,
  });
  assert.strictEqual(answer.status, 200, await answer.clone().text());
  const { epoch, offset } = await answer.json();
  return `${epoch}:${offset}`;
}

async function main() {
  const claims = { sub: "u1", exp: NOW + 600, channels: ["news:*", "quiet:*"], publish: ["news:*", "quiet:*"] };
  const seen = { "news:a": await publish("news:a", "a0"), "news:b": await publish("news:b", "b0") };
  await publish("news:a", "a1");
  await publish("news:b", "b1");

  // Without a channel and without a token: nothing may be had yet.
  const client = await open("");
  assert.deepStrictEqual((await client.ask({ ping: true })).ok, {});
  assert.strictEqual((await client.ask({ subscribe: "news:a" })).error.code, 401);

  // The token as first message, and one that is not ours.
  assert.strictEqual((await client.ask({ token: "nonsense" })).error.code, 401);
  ends((await client.ask({ token: token(claims) })).ok, NOW + 600);

  // Two channels, each from its own position.
  for (const name of ["news:a", "news:b"]) {
    const { ok } = await client.ask({ subscribe: name, since: seen[name] });
    assert.strictEqual(ok.recovered, true);
    assert.strictEqual((await client.publication(name)).data, `${name.slice(-1)}1`);
  }
  assert.strictEqual((await client.ask({ subscribe: "news:a" })).error.code, 409);
  assert.strictEqual((await client.ask({ subscribe: "weather" })).error.code, 403);

  // The answer to a publish, and who published.
  assert.deepStrictEqual((await client.ask({ publish: { channel: "news:a", event: "e", data: [1] } })).ok, {});
  const own = await client.publication("news:a");
  assert.deepStrictEqual([own.event, own.user, own.data], ["e", "u1", [1]]);
  assert.strictEqual((await client.ask({ publish: { channel: "news:c", data: 1 } })).error.code, 403);
  assert.strictEqual((await client.ask({ publish: { data: 1 } })).error.code, 400, "which of the two");
  assert.strictEqual((await client.ask({ publish: { channel: "news:a" } })).error.code, 400, "no data");

  // Who is there, and what was.
  const others = await open(`&channel=news:a&token=${token({ ...claims, sub: "u2" })}`);
  let present;
  do ({ ok: present } = await client.ask({ presence: "news:a" }));
  while (present.members.length < 2);
  assert.deepStrictEqual(present.members.map((member) => member.user).sort(), ["u1", "u2"]);
  assert.strictEqual((await client.ask({ presence: "quiet:a" })).error.code, 404);
  const { ok: history } = await client.ask({ history: { channel: "news:a", limit: 2, since: seen["news:a"] } });
  assert.deepStrictEqual(history.publications.map((publication) => publication.data), ["a1", [1]]);
  assert.strictEqual(history.continuous, true);

  // A channel of its own token; the connection's does not cover it.
  const wider = token({ sub: "u1", exp: NOW + 600, channels: ["weather"] });
  const entered = await client.ask({ subscribe: "weather", token: wider });
  assert.strictEqual(entered.ok?.channel, "weather", JSON.stringify(entered));
  assert.strictEqual((await client.ask({ subscribe: "news:c" })).error.code, 429, "three are allowed");

  // What is left is not heard, and can be left once.
  assert.deepStrictEqual((await client.ask({ unsubscribe: "news:a" })).ok, { channel: "news:a" });
  assert.strictEqual((await client.ask({ unsubscribe: "news:a" })).error.code, 404);
  await publish("news:a", "unheard");
  await publish("news:b", "heard");
  assert.strictEqual((await client.publication("news:b")).data, "heard");

  // Several channels in the URL, each from its position.
  const back = await open(`&channel=news:a&channel=news:b&since=,${seen["news:b"]}&token=${token(claims)}`);
  assert.strictEqual((await back.publication("news:b")).data, "b1");

  // A token is renewed before it expires, by one of the same user.
  ends((await client.ask({ token: token({ ...claims, exp: NOW + 900 }) })).ok, NOW + 900);
  assert.strictEqual((await client.ask({ token: token({ ...claims, sub: "u2" }) })).error.code, 403);

  // What cannot be read is told, with the id where there is one, and the connection stays.
  assert.strictEqual((await client.ask({ shout: "news:a" })).error.code, 400);
  assert.strictEqual((await client.ask({ subscribe: "a b" })).error.code, 400);
  assert.strictEqual((await client.ask({ subscribe: "news:c", since: "x" })).error.code, 400);
  for (const text of ["{", "[]", "1", '{"ping":true,"id":"x"}']) {
    client.send(text);
    assert.strictEqual((await client.error()).error.code, 400, text);
  }
  client.send('{"ping":true}');
  assert.deepStrictEqual((await client.ask({ ping: true })).ok, {}, "an id is not needed");

  for (const { socket } of [client, others, back]) {
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
