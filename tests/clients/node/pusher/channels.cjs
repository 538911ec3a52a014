// pusher-js on two nodes and the server SDK: every kind of channel, client events, users, counts.
"use strict";

const { assert, check, client, count, events, of, report, server, subscribe, until, watch } = require("./kit.cjs");

const [A, B] = process.env.GATEWAYS.split(",");
const [serverA, serverB] = [server(A), server(B)];

let channelMethodsCounted = false;

// Channels have no exported class: their methods are counted once there is one.
function countChannel(channel) {
  if (channelMethodsCounted) return;
  channelMethodsCounted = true;
  const base = Object.getPrototypeOf(Object.getPrototypeOf(channel));
  count(Object.getPrototypeOf(channel), "channel.", ["authorize"]);
  count(base, "channel.", ["trigger"]);
}

// A mark that the server sends after all else: what has not come before it does not come.
async function mark(name, ...channels) {
  await serverA.trigger(name, "mark", "");
  for (const channel of channels) await until(`the mark in ${name}`, () => of(channel, "mark").length > 0);
}

check("public: data of every kind, over both nodes", async () => {
  const name = "public-data";
  const a = await client(A);
  const b = await client(B);
  const [onA, onB] = [await subscribe(a, name), await subscribe(b, name)];
  const values = [{ text: 'quotes " and \\ and ünï✓\u2028' }, "plain text", 17, [1, null, true], "", '{"inner":"json"}'];
  for (const value of values) await serverB.trigger(name, "kind", value);
  await mark(name, onA, onB);
  // A string that is JSON arrives parsed: pusher-js parses every `data` it can.
  const expected = [...values.slice(0, 5), { inner: "json" }];
  assert.deepStrictEqual(of(onA, "kind"), expected);
  assert.deepStrictEqual(of(onB, "kind"), expected);
});

check("public: several channels in one trigger, then unsubscribed from one", async () => {
  const pusher = await client(A);
  const [one, two] = [await subscribe(pusher, "several-1"), await subscribe(pusher, "several-2")];
  const seen = [];
  pusher.bind("both", ({ n }) => seen.push(n));
  pusher.bind_global((event) => event === "both" && seen.push(event));
  await serverB.trigger(["several-1", "several-2"], "both", { n: 1 });
  await until("the event in both", () => events(one).length === 1 && events(two).length === 1 && seen.length === 4);
  assert.deepStrictEqual(seen.sort(), [1, 1, "both", "both"]);
  const other = watch(pusher.channel("several-1"));
  pusher.unsubscribe("several-1");
  await until("nobody in the channel", async () => {
    const answer = await serverA.get({ path: "/channels/several-1" });
    return (await answer.json()).occupied === false;
  });
  await serverB.trigger(["several-1", "several-2"], "both", { n: 2 });
  await until("the event in one", () => events(two).length === 2);
  assert.strictEqual(events(other).length, 0);
});

check("private: authorised by the server SDK; a wrong signature refuses the channel and keeps the connection", async () => {
  const pusher = await client(A);
  const good = await subscribe(pusher, "private-good");
  countChannel(good);
  const wrong = server(A, { secret: "another-secret" });
  pusher.config.channelAuthorizer = ({ socketId, channelName }, callback) =>
    callback(null, wrong.authorizeChannel(socketId, channelName));
  const bad = watch(pusher.subscribe("private-bad"));
  await until("the refusal", () => of(bad, "pusher:subscription_error").length === 1);
  const [{ type, status }] = of(bad, "pusher:subscription_error");
  assert.deepStrictEqual({ type, status }, { type: "AuthError", status: 401 });
  await serverB.trigger(["private-good", "private-bad"], "event", { for: "members" });
  await until("the event", () => of(good, "event").length === 1);
  assert.strictEqual(pusher.connection.state, "connected");
  assert.strictEqual(events(bad).length, 0);
});

check("encrypted: the payload is opened by the client and is not readable on the way", async () => {
  const name = "private-encrypted-box";
  const pusher = await client(A);
  const frames = [];
  pusher.connection.bind("message", (frame) => frames.push(JSON.stringify(frame)));
  const channel = await subscribe(pusher, name);
  await serverB.trigger(name, "secret", { treasure: "buried" });
  await until("the opened event", () => of(channel, "secret").length === 1);
  assert.deepStrictEqual(of(channel, "secret"), [{ treasure: "buried" }]);
  assert.ok(!frames.some((frame) => frame.includes("buried")), "it was encrypted");
  assert.ok(frames.some((frame) => frame.includes("ciphertext")));
});

check("presence: users and not connections, joins and leaves over both nodes", async () => {
  const name = "presence-room";
  const ada = await client(A, { presence: { user_id: "ada", user_info: { name: "Ada" } } });
  const onA = await subscribe(ada, name);
  assert.deepStrictEqual([onA.members.count, onA.members.me.id], [1, "ada"]);
  const bob1 = await client(B, { presence: { user_id: "bob", user_info: { name: "Bob" } } });
  const bob2 = await client(A, { presence: { user_id: "bob", user_info: { name: "Bob" } } });
  const onB = await subscribe(bob1, name);
  assert.strictEqual(onB.members.count, 2);
  assert.deepStrictEqual(onB.members.get("ada"), { id: "ada", info: { name: "Ada" } });
  await subscribe(bob2, name);
  const cyd = await client(B, { presence: { user_id: "cyd" } });
  await subscribe(cyd, name);
  await until("cyd joined", () => of(onA, "pusher:member_added").length === 2);
  assert.deepStrictEqual(of(onA, "pusher:member_added").map((member) => member.id), ["bob", "cyd"]);

  for (const node of [serverA, serverB]) {
    const { users } = await (await node.get({ path: `/channels/${name}/users` })).json();
    assert.deepStrictEqual(users.map((user) => user.id).sort(), ["ada", "bob", "cyd"]);
    const info = await (await node.get({ path: `/channels/${name}`, params: { info: "user_count" } })).json();
    assert.deepStrictEqual(info, { occupied: true, user_count: 3 });
  }

  // One of Bob's two connections, then Cyd's only one: Bob stays.
  bob1.disconnect();
  cyd.disconnect();
  await until("cyd left", () => of(onA, "pusher:member_removed").length > 0);
  assert.deepStrictEqual(of(onA, "pusher:member_removed").map((member) => member.id), ["cyd"]);
  bob2.unsubscribe(name);
  await until("bob left", () => of(onA, "pusher:member_removed").length === 2);
  assert.strictEqual(onA.members.count, 1);
});

check("client events: to the others on both nodes and not to the sender, with the sender's user", async () => {
  const name = "presence-whisper";
  const a = await client(A, { presence: { user_id: "ada" } });
  const b = await client(B, { presence: { user_id: "bob" } });
  const [onA, onB] = [await subscribe(a, name), await subscribe(b, name)];
  const from = [];
  onB.bind("client-typing", (data, metadata) => from.push([data, metadata]));
  assert.ok(onA.trigger("client-typing", { on: true }));
  await until("the event on the other node", () => from.length === 1);
  assert.deepStrictEqual(from, [[{ on: true }, { user_id: "ada" }]]);
  await mark(name, onA);
  assert.deepStrictEqual(of(onA, "client-typing"), []);
});

check("client events: more than ten a second are answered with error 4301", async () => {
  const pusher = await client(A);
  const channel = await subscribe(pusher, "private-flood");
  const errors = [];
  pusher.connection.bind("error", ({ data }) => data && errors.push(data.code));
  for (let n = 0; n < 40; n += 1) channel.trigger("client-n", { n });
  await until("the error", () => errors.includes(4301));
  assert.strictEqual(pusher.connection.state, "connected");
});

for (const prefix of ["cache-", "private-cache-", "presence-cache-", "private-encrypted-cache-"]) {
  check(`cache: ${prefix} tells of a miss, then gives the last event on either node`, async () => {
    const name = `${prefix}scores`;
    const first = await client(A, { presence: { user_id: "first" } });
    const onA = await subscribe(first, name);
    await until("the miss", () => of(onA, "pusher:cache_miss").length === 1);
    await serverB.trigger(name, "score", { goals: 1 });
    await serverB.trigger(name, "score", { goals: 2 });
    await until("both events", () => of(onA, "score").length === 2);
    const second = await client(B, { presence: { user_id: "second" } });
    const onB = await subscribe(second, name);
    await until("the replay", () => of(onB, "score").length === 1);
    assert.deepStrictEqual(of(onB, "score"), [{ goals: 2 }]);
    await mark(name, onB);
    assert.strictEqual(of(onB, "pusher:cache_miss").length, 0);
    assert.strictEqual(of(onB, "score").length, 1);
  });
}

check("exclusion: the socket that is named gets nothing, on whichever node it is", async () => {
  const name = "exclusion";
  const a = await client(A);
  const b = await client(B);
  const [onA, onB] = [await subscribe(a, name), await subscribe(b, name)];
  await serverB.trigger(name, "one", {}, { socket_id: a.connection.socket_id });
  await serverB.triggerBatch([
    { channel: name, name: "two", data: {}, socket_id: b.connection.socket_id },
    { channel: name, name: "three", data: {}, socket_id: a.connection.socket_id },
  ]);
  await mark(name, onA, onB);
  assert.deepStrictEqual(events(onA).map(([event]) => event), ["two", "mark"]);
  assert.deepStrictEqual(events(onB).map(([event]) => event), ["one", "three", "mark"]);
});

check("batch: in order, over several channels, with encrypted ones", async () => {
  const pusher = await client(A);
  const [plain, boxed] = [await subscribe(pusher, "batch-plain"), await subscribe(pusher, "private-encrypted-batch")];
  const answer = await serverB.triggerBatch([
    { channel: "batch-plain", name: "n", data: { n: 1 } },
    { channel: "private-encrypted-batch", name: "n", data: { n: 2 } },
    { channel: "batch-plain", name: "n", data: { n: 3 } },
  ]);
  assert.strictEqual(await answer.text(), "{}");
  await until("all three", () => of(plain, "n").length === 2 && of(boxed, "n").length === 1);
  assert.deepStrictEqual(of(plain, "n"), [{ n: 1 }, { n: 3 }]);
  assert.deepStrictEqual(of(boxed, "n"), [{ n: 2 }]);
});

check("signin: events to the user on every node, then all connections terminated", async () => {
  const user = { id: "user-17", user_info: { name: "Seventeen" } };
  const both = [await client(A, { user }), await client(B, { user })];
  const seen = [];
  const codes = [];
  for (const pusher of both) {
    pusher.connection.bind("error", ({ data }) => data && codes.push(data.code));
    pusher.user.bind("letter", (data) => seen.push(data));
    pusher.signin();
    await pusher.user.signinDonePromise;
    assert.strictEqual(pusher.user.user_data.id, "user-17");
    await until("the user's channel", () => pusher.user.serverToUserChannel.subscribed);
  }
  await serverB.sendToUser("user-17", "letter", { stamp: true });
  await until("both letters", () => seen.length === 2);
  assert.deepStrictEqual(seen, [{ stamp: true }, { stamp: true }]);
  await serverA.terminateUserConnections("user-17");
  // 4009 stops pusher-js for good.
  await until("both are ended", () => both.every((pusher) => pusher.connection.state === "disconnected"));
  // As an error, and again as the code of the close.
  assert.deepStrictEqual([...new Set(codes)], [4009]);
});

check("watchlist: who is online already, who comes and who goes", async () => {
  const early = await client(B, { user: { id: "early" } });
  early.signin();
  await until("early is in", () => early.user.user_data);
  const watcher = await client(A, { user: { id: "watcher", watchlist: ["early", "late"] } });
  const seen = [];
  for (const name of ["online", "offline"]) {
    watcher.user.watchlist.bind(name, ({ user_ids }) => seen.push(...user_ids.map((id) => `${id} ${name}`)));
  }
  watcher.signin();
  await until("both are told", () => seen.length === 2);
  assert.deepStrictEqual([...seen].sort(), ["early online", "late offline"]);
  const late = await client(B, { user: { id: "late" } });
  late.signin();
  await until("late is seen", () => seen.includes("late online"));
  early.disconnect();
  await until("early is gone", () => seen.includes("early offline"));
  assert.deepStrictEqual(seen.slice(2), ["late online", "early offline"]);
});

check("subscription_count: told to subscribers, of both nodes", async () => {
  const name = "counted";
  const onA = await subscribe(await client(A), name);
  const second = await client(B);
  await subscribe(second, name);
  await until("two are counted", () => onA.subscriptionCount === 2);
  second.unsubscribe(name);
  await until("one is counted", () => onA.subscriptionCount === 1);
});

check("queries: channels by prefix, one channel, what a trigger may ask for", async () => {
  const members = [await client(A, { presence: { user_id: "p" } }), await client(B, { presence: { user_id: "q" } })];
  for (const pusher of members) {
    await subscribe(pusher, "presence-query");
    await subscribe(pusher, "query-public");
  }
  const query = async (path, params) => (await serverA.get({ path, params })).json();
  assert.deepStrictEqual(await query("/channels", { filter_by_prefix: "presence-query", info: "user_count" }), {
    channels: { "presence-query": { user_count: 2 } },
  });
  const { channels } = await query("/channels", { filter_by_prefix: "query-" });
  assert.deepStrictEqual(channels, { "query-public": {} });
  assert.deepStrictEqual(await query("/channels/query-public", { info: "subscription_count" }), {
    occupied: true,
    subscription_count: 2,
  });
  const answer = await serverB.trigger(["presence-query", "query-public"], "e", "d", { info: "user_count,subscription_count" });
  assert.deepStrictEqual(await answer.json(), {
    channels: { "presence-query": { user_count: 2, subscription_count: 2 }, "query-public": { subscription_count: 2 } },
  });
  assert.strictEqual(await (await serverB.trigger("query-public", "e", "d")).text(), "{}");
});

check("connection: ping and pong, and a client that comes back has its channels again", async () => {
  const pusher = await client(A);
  const channel = await subscribe(pusher, "comes-back");
  const received = [];
  pusher.connection.bind("message", ({ event }) => received.push(event));
  pusher.send_event("pusher:ping", {});
  await until("the pong", () => received.includes("pusher:pong"));
  const socket = pusher.connection.socket_id;
  pusher.disconnect();
  await until("nobody in the channel", async () => {
    const answer = await serverB.get({ path: "/channels/comes-back" });
    return (await answer.json()).occupied === false;
  });
  pusher.connect();
  await until("another connection", () => pusher.connection.state === "connected" && pusher.connection.socket_id !== socket);
  await until("its channel", () => channel.subscribed);
  await serverB.trigger("comes-back", "again", { n: 1 });
  await until("the event", () => of(channel, "again").length === 1);
});

report();
