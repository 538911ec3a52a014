// Every command of the client, over two nodes: what comes of it, and what is refused.
"use strict";

const kit = require("./kit.cjs");
const { IS_PROTOBUF, assert, check, client, connected, decoded, encoded, follow, publish, rejected, subscribed, token, until } = kit;

const [ONE, TWO] = process.env.GATEWAYS.split(",");
const ada = { sub: "ada", channels: ["room:*"], publish: ["room:*"], info: { name: "Ada" } };
const bob = { sub: "bob", channels: ["room:*"] };

check("a publication reaches clients of both nodes in order, whoever sends it", async () => {
  const [here, there] = [await connected(ONE, { token: token(ada) }), await connected(TWO)];
  const subscriptions = [await subscribed(here, "news:a"), await subscribed(there, "news:a")];
  for (let number = 0; number < 20; number++) await publish(number % 2 ? ONE : TWO, "news:a", { number });
  const expect = Array.from({ length: 20 }, (_, number) => ({ number }));
  for (const subscription of subscriptions) {
    await until("20 publications", () => subscription.got.length === 20);
    assert.deepStrictEqual(subscription.got, expect);
    const [{ recoverable, positioned, wasRecovering, streamPosition }] = subscription.seen.filter(({ event }) => event === "subscribed");
    assert.deepStrictEqual({ recoverable, positioned, wasRecovering }, { recoverable: true, positioned: true, wasRecovering: false });
    assert.ok(streamPosition.epoch);
  }
});

check("clients publish with their token's right, and are told their own", async () => {
  const [sender, reader] = [await connected(ONE, { token: token(ada) }), await connected(TWO, { token: token(bob) })];
  const [own, other] = [await subscribed(sender, "room:p"), await subscribed(reader, "room:p")];
  await sender.publish("room:p", encoded(["by client"]));
  await own.publish(encoded("by subscription"));
  for (const subscription of [own, other]) {
    await until("two publications", () => subscription.got.length === 2);
    assert.deepStrictEqual(subscription.got, [["by client"], "by subscription"]);
    assert.strictEqual(subscription.publications[0].info.user, "ada");
  }
  assert.strictEqual(await rejected(reader.publish("room:p", encoded(1))), 103);
  assert.strictEqual(await rejected(sender.publish("news:a", encoded(1))), 103);
});

check("presence names those with a user on all nodes", async () => {
  const [here, there] = [await connected(ONE, { token: token(ada) }), await connected(TWO, { token: token(bob) })];
  const subscription = await subscribed(here, "room:q");
  await subscribed(there, "room:q");
  const { clients } = await until("both are there", async () => {
    const presence = await here.presence("room:q");
    return Object.keys(presence.clients).length === 2 && presence;
  });
  const users = Object.values(clients).map(({ user }) => user);
  assert.deepStrictEqual(users.sort(), ["ada", "bob"]);
  const own = Object.values(clients).find(({ user }) => user === "ada");
  assert.deepStrictEqual(decoded(own.conn_info), { name: "Ada" });
  assert.ok(clients[own.client], "the key is the client's name");
  assert.deepStrictEqual(await subscription.presenceStats(), { numClients: 2, numUsers: 2 });
  there.disconnect();
  await until("one is left", async () => (await here.presenceStats("room:q")).numClients === 1);
});

check("a subscription has info of its own, on all nodes", async () => {
  const [here, there] = [await connected(ONE, { token: token(ada) }), await connected(TWO, { token: token({ ...bob, info: [1] }) })];
  const subscription = follow(here, "room:seats", { joinLeave: true });
  const heard = [];
  for (const event of ["join", "leave"]) subscription.on(event, ({ info }) => heard.push([event, info.user, decoded(info.connInfo), decoded(info.chanInfo)]));
  await subscription.ready(45000);
  const own = token({ sub: "bob", channel: "room:seats", info: { seat: 7 } });
  const theirs = await subscribed(there, "room:seats", { token: own });
  await until("bob came", () => heard.length === 1);
  const { clients } = await here.presence("room:seats");
  const { conn_info: conn, chan_info: chan } = Object.values(clients).find(({ user }) => user === "bob");
  assert.deepStrictEqual([decoded(conn), decoded(chan)], [[1], { seat: 7 }]);
  const quiet = token({ sub: "ada", channel: "room:seats", override: { join_leave: { value: false } } });
  await subscribed(await connected(TWO, { token: token(ada) }), "room:seats", { token: quiet });
  theirs.unsubscribe();
  await until("bob left", () => heard.length === 2);
  assert.deepStrictEqual(heard, ["join", "leave"].map((event) => [event, "bob", [1], { seat: 7 }]));
  assert.deepStrictEqual(await here.presenceStats("room:seats"), { numClients: 2, numUsers: 1 });
});

check("who is anonymous is listed without a user", async () => {
  const [one, two] = [await connected(ONE), await connected(TWO)];
  for (const made of [one, two]) await subscribed(made, "hall:a");
  const counts = await until("both are there", async () => {
    const counts = await one.presenceStats("hall:a");
    return counts.numClients === 2 && counts;
  });
  assert.deepStrictEqual(counts, { numClients: 2, numUsers: 1 });
  assert.ok(Object.values((await two.presence("hall:a")).clients).every(({ user }) => !user));
});

check("who joins and leaves on the other node is told", async () => {
  const here = await connected(ONE, { token: token(ada) });
  const subscription = follow(here, "room:come", { joinLeave: true });
  const heard = [];
  for (const event of ["join", "leave"]) subscription.on(event, ({ info }) => heard.push([event, info.user]));
  await subscription.ready(45000);
  const there = await connected(TWO, { token: token(bob) });
  await subscribed(there, "room:come");
  await until("bob came", () => heard.length === 1);
  there.disconnect();
  await until("bob left", () => heard.length === 2);
  assert.deepStrictEqual(heard, [["join", "bob"], ["leave", "bob"]]);
});

check("what a token subscribes to is told, published and recovered", async () => {
  const of = { sub: "eve", subs: { "news:server": { data: { why: "token" } }, "plain:server": {} } };
  const made = client(ONE, { token: token(of) });
  const heard = [];
  made.on("subscribed", (context) => heard.push(["subscribed", context.channel, context.recovered]));
  made.on("publication", ({ channel, data }) => heard.push([channel, decoded(data)]));
  await made.ready(45000);
  await publish(TWO, "news:server", 1);
  await publish(ONE, "plain:server", 2);
  await until("both", () => heard.length === 4);
  const begun = [["subscribed", "news:server", false], ["subscribed", "plain:server", false]];
  assert.deepStrictEqual(heard.slice(0, 2).sort(), begun);
  assert.deepStrictEqual(heard.slice(2).sort(), [["news:server", 1], ["plain:server", 2]]);
  made.disconnect();
  heard.length = 0;
  await publish(TWO, "news:server", 3);
  made.connect();
  await made.ready(45000);
  await until("what was missed", () => heard.some(([channel]) => channel === "news:server"));
  assert.deepStrictEqual(heard.filter(([, channel]) => channel === "news:server"), [["subscribed", "news:server", true]]);
  assert.deepStrictEqual(heard.filter(([channel]) => channel === "news:server"), [["news:server", 3]]);
});

check("channels of users, and private ones", async () => {
  const made = await connected(ONE, { token: token(ada) });
  const own = await subscribed(made, "mine:#ada,bob");
  await publish(TWO, "mine:#ada,bob", 1);
  await until("it is told", () => own.got.length === 1);
  const foreign = follow(made, "mine:#bob");
  await until("it is refused", () => foreign.state === "unsubscribed");
  assert.strictEqual(foreign.seen.at(-1).code, 103);
  const getToken = async ({ channel }) => token({ sub: "ada", channel });
  await subscribed(await connected(TWO, { token: token(ada) }), "$plain:secret", { getToken });
});

check("a cache has the newest at once", async () => {
  for (const number of [1, 2, 3]) await publish(ONE, "cache:c", number);
  const subscription = await subscribed(await connected(TWO), "cache:c", { since: { epoch: "", offset: 0 } });
  await until("the newest", () => subscription.got.length === 1);
  assert.deepStrictEqual(subscription.got, [3]);
  assert.strictEqual(subscription.seen.find(({ event }) => event === "subscribed").recovered, true);
});

check("1,000 publications told by differences are byte for byte the same", async () => {
  const subscription = follow(await connected(ONE), "diff:d", { delta: "fossil" });
  await subscription.ready(45000);
  const plain = await subscribed(await connected(TWO), "diff:d");
  const payload = (number) => ({ number, text: "é€𝄞 ".repeat(number % 7), rows: Array.from({ length: 20 }, (_, row) => `row ${row} ${row === number % 20 ? number : "same"}`) });
  const expect = [];
  for (let number = 0; number < 1000; number++) {
    const data = payload(number);
    expect.push(data);
    await publish(number % 2 ? ONE : TWO, "diff:d", data);
  }
  for (const { got } of [subscription, plain]) {
    await until("1,000", () => got.length === 1000);
    assert.deepStrictEqual(got, expect);
  }
  assert.ok(subscription._deltaNumDelta > 900, `${subscription._deltaNumDelta} were differences`);
  assert.ok(subscription._deltaBytesReceived * 2 < subscription._deltaBytesDecoded);
});

check("history in both directions and by pages", async () => {
  const reader = await connected(TWO);
  for (let number = 1; number <= 5; number++) await publish(ONE, "news:h", number);
  const { publications, epoch, offset } = await reader.history("news:h");
  assert.deepStrictEqual([publications, offset], [[], 5]);
  const numbers = async (options) => (await reader.history("news:h", options)).publications.map(({ data }) => decoded(data));
  assert.deepStrictEqual(await numbers({ limit: 2 }), [1, 2]);
  assert.deepStrictEqual(await numbers({ limit: 2, since: { epoch, offset: 2 } }), [3, 4]);
  assert.deepStrictEqual(await numbers({ limit: 2, reverse: true }), [5, 4]);
  assert.deepStrictEqual(await numbers({ limit: 9, since: { epoch, offset: 2 }, reverse: true }), [1]);
  assert.strictEqual(await rejected(reader.history("news:h", { limit: 1, since: { epoch: "gone", offset: 1 } })), 112);
  assert.strictEqual(await rejected(reader.history("plain:h")), 108);
});

check("a client that comes back recovers; who cannot is told", async () => {
  const made = await connected(ONE);
  const subscription = await subscribed(made, "news:r");
  await publish(TWO, "news:r", 1);
  await until("the first", () => subscription.got.length === 1);
  made.disconnect();
  for (const number of [2, 3, 4]) await publish(TWO, "news:r", number);
  made.connect();
  await until("all", () => subscription.got.length === 4);
  assert.deepStrictEqual(subscription.got, [1, 2, 3, 4]);
  const back = subscription.seen.filter(({ event }) => event === "subscribed")[1];
  assert.deepStrictEqual([back.wasRecovering, back.recovered, back.hasRecoveredPublications], [true, true, true]);
  const since = { epoch: "gone", offset: 1 };
  const lost = await subscribed(await connected(ONE), "news:r", { since });
  const [{ wasRecovering, recovered, streamPosition }] = lost.seen.filter(({ event }) => event === "subscribed");
  assert.deepStrictEqual([wasRecovering, recovered, streamPosition.offset], [true, false, 4]);
});

check("twenty subscriptions of a first frame, and a subscription once more", async () => {
  const made = client(ONE);
  const all = Array.from({ length: 20 }, (_, number) => follow(made, `${number % 2 ? "plain" : "news"}:many${number}`));
  await Promise.all(all.map((subscription) => subscription.ready(45000)));
  for (const [number, subscription] of all.entries()) await publish(TWO, subscription.channel, number);
  await until("each its own", () => all.every(({ got }) => got.length === 1));
  assert.deepStrictEqual(all.map(({ got }) => got[0]), all.map((_, number) => number));
  all[0].unsubscribe();
  all[0].subscribe();
  await all[0].ready(45000);
  assert.deepStrictEqual(made.seen.map(({ event }) => event), ["connecting", "connected"]);
});

check("tokens are renewed before they end", async () => {
  let asked = 0;
  const getToken = async () => token(ada, asked++ ? 600 : 4);
  const made = await connected(ONE, { getToken });
  let granted = 0;
  const own = async ({ channel }) => token({ sub: "ada", channel }, granted++ ? 600 : 4);
  const subscription = await subscribed(made, "vault:a", { getToken: own });
  await until("both were renewed", () => asked === 2 && granted === 2);
  await new Promise((resolve) => setTimeout(resolve, 4000));
  await publish(TWO, "vault:a", "still here");
  await until("it is told", () => subscription.got.length === 1);
  assert.deepStrictEqual(made.seen.map(({ event }) => event), ["connecting", "connected"]);
  assert.deepStrictEqual(subscription.seen.map(({ event }) => event), ["subscribing", "subscribed"]);
});

check("an expired token has the client bring another", async () => {
  let asked = 0;
  const made = await connected(ONE, { token: token(ada, -60), getToken: async () => (asked++, token(ada)) });
  assert.strictEqual(asked, 1);
  const own = await subscribed(made, "vault:b", { token: token({ sub: "ada", channel: "vault:b" }, -60), getToken: async () => token({ sub: "ada", channel: "vault:b" }) });
  assert.ok(own.seen.some(({ event, error }) => event === "error" && error.code === 109));
});

check("what is refused is refused for good", async () => {
  const wrong = client(ONE, { token: "not.a.token" });
  await until("it stops", () => wrong.state === "disconnected");
  assert.strictEqual(wrong.seen.at(-1).code, 3500);
  const made = await connected(ONE);
  const denied = follow(made, "vault:c");
  await until("it is refused", () => denied.state === "unsubscribed");
  assert.strictEqual(denied.seen.at(-1).code, 103);
  assert.strictEqual(await rejected(made.rpc("sum", encoded([1, 2]))), 104);
  assert.strictEqual(await rejected(made.presence("plain:x")), 108);
  await made.send(encoded("anybody?"));
  await until("it stops", () => made.state === "disconnected");
  assert.strictEqual(made.seen.at(-1).code, 3508);
});

check("a subscription outlives many pings", async () => {
  const made = await connected(ONE);
  const subscription = await subscribed(made, "plain:pings");
  await new Promise((resolve) => setTimeout(resolve, 5000));
  await publish(TWO, "plain:pings", 1);
  await until("it is told", () => subscription.got.length === 1);
  assert.deepStrictEqual(made.seen.map(({ event }) => event), ["connecting", "connected"]);
});

check("channels are shared with raw clients and those of Pusher", async () => {
  const made = await connected(ONE, { token: token(ada) });
  const subscription = await subscribed(made, "room:shared");
  const raw = new (require("ws"))(`${TWO.replace("http", "ws")}/ws?channel=room:shared&token=${token(ada)}`);
  const heard = [];
  raw.on("message", (data) => heard.push(data.toString()));
  await new Promise((resolve, reject) => raw.on("open", resolve).on("error", reject));
  await made.publish("room:shared", encoded({ from: "centrifuge" }));
  await until("the raw client hears it", () => heard.length === 1);
  assert.deepStrictEqual(JSON.parse(heard[0]), { from: "centrifuge" });
  raw.send(JSON.stringify({ from: "raw" }));
  await until("and is heard", () => subscription.got.length === 2);
  assert.deepStrictEqual(subscription.got[1], { from: "raw" });
  raw.close();
});

if (!IS_PROTOBUF) {
  check("what is no JSON is a string", async () => {
    const subscription = await subscribed(await connected(ONE), "plain:text");
    const send = (type, body) =>
      fetch(`${TWO}/v1/channels/plain:text/publish`, { method: "POST", headers: { authorization: "Bearer dev-key", "content-type": type }, body });
    await send("text/plain", "plain words");
    await send("application/octet-stream", new Uint8Array([0, 255]));
    await until("both", () => subscription.got.length === 2);
    assert.deepStrictEqual(subscription.got, ["plain words", "AP8="]);
  });
}

kit.report();
