// The limits of Pusher on what clients do, and the answer that each gets. Those of the HTTP API are in `requests.cjs`.
"use strict";

const { assert, check, client, member, of, report, server, subscribe, until, watch } = require("./kit.cjs");

const [A] = process.env.GATEWAYS.split(",");

function errors(pusher) {
  const codes = [];
  pusher.connection.bind("error", ({ data }) => data && codes.push(data.code));
  return codes;
}

const outcome = ({ event, data }) => (event.endsWith("_succeeded") ? "in" : `${data.type} ${data.status}`);

check("100 members in a presence channel, and the same user again is no 101st", async () => {
  const ids = Array.from({ length: 100 }, (_, n) => ({ user_id: `u${n}` }));
  const members = await Promise.all(ids.map((user) => member(A, "presence-full", user)));
  assert.deepStrictEqual([...new Set(members.map(outcome))], ["in"]);
  assert.strictEqual(outcome(await member(A, "presence-full", { user_id: "one-more" })), "LimitReached 403");
  assert.strictEqual(outcome(await member(A, "presence-full", { user_id: "u7" })), "in");
  for (const { socket } of members.slice(50)) socket.close();
  await until("there is room again", async () => outcome(await member(A, "presence-full", { user_id: "one-more" })) === "in");
});

check("1 KiB of user_info, 128 characters of user_id, and what is no member", async () => {
  const info = (bytes) => ({ user_id: "u", user_info: { text: "x".repeat(bytes - '{"text":""}'.length) } });
  for (const [user, expected] of [
    [info(1024), "in"],
    [info(1025), "RequestError 400"],
    [{ user_id: "u".repeat(128) }, "in"],
    [{ user_id: "u".repeat(129) }, "RequestError 400"],
    [{ user_info: { name: "nobody" } }, "RequestError 400"],
    [{ user_id: 17 }, "in"],
  ]) {
    assert.strictEqual(outcome(await member(A, "presence-sizes", user)), expected, JSON.stringify(user).slice(0, 60));
  }
});

check("ten client events a second, 10 KiB each, and none in public channels", async () => {
  const [pusher, other] = [await client(A), await client(A)];
  const codes = errors(pusher);
  const channel = await subscribe(pusher, "private-sizes");
  const seen = await subscribe(other, "private-sizes");
  // pusher-js sends data as JSON: a string has its quotes.
  pusher.send_event("client-fits", "x".repeat(10 * 1024 - 2), "private-sizes");
  pusher.send_event("client-long", "x".repeat(10 * 1024 + 1), "private-sizes");
  await until("the refusal", () => codes.length === 1);
  assert.deepStrictEqual(codes, [null]);
  await subscribe(pusher, "public-sizes");
  pusher.send_event("client-public", {}, "public-sizes");
  await until("another refusal", () => codes.length === 2);
  for (let n = 0; n < 40; n += 1) channel.trigger("client-n", { n });
  await until("the rate's refusal", () => codes.includes(4301));
  await until("those within the rate", () => of(seen, "client-n").length > 0);
  assert.strictEqual(of(seen, "client-fits").length, 1);
  assert.strictEqual(of(seen, "client-long").length, 0);
  assert.ok(of(seen, "client-n").length < 40);
  assert.strictEqual(pusher.connection.state, "connected");
});

check("100 users on a watchlist, and error 4302 for more", async () => {
  const list = (length) => Array.from({ length }, (_, n) => `w${n}`);
  const fits = await client(A, { user: { id: "fits", watchlist: list(100) } });
  const long = await client(A, { user: { id: "long", watchlist: list(101) } });
  const codes = [errors(fits), errors(long)];
  for (const pusher of [fits, long]) pusher.signin();
  await until("the error", () => codes[1].length === 1);
  assert.deepStrictEqual(codes[1], [4302]);
  await until("both are in", () => fits.user.user_data && long.user.user_data);
  assert.deepStrictEqual(codes[0], []);
});

check("a wrong signature of a user closes with 4009", async () => {
  const pusher = await client(A, { user: { id: "forged" } });
  const codes = errors(pusher);
  const wrong = server(A, { secret: "another-secret" });
  pusher.config.userAuthenticator = ({ socketId }, callback) => callback(null, wrong.authenticateUser(socketId, { id: "forged" }));
  pusher.signin();
  await until("the end", () => pusher.connection.state === "disconnected");
  assert.ok(codes.includes(4009), `${codes}`);
});

check("a name of 200 characters is one, of 201 none", async () => {
  const pusher = await client(A);
  await subscribe(pusher, "c".repeat(200));
  const long = watch(pusher.subscribe("c".repeat(201)));
  const codes = errors(pusher);
  await until("the refusal", () => codes.length > 0);
  assert.ok(!long.subscribed);
  assert.strictEqual(pusher.connection.state, "connected");
});

report();
