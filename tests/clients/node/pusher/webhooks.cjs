// What an app's servers are told: every event, signed, judged by the SDK's own verifier, each once for all nodes.
"use strict";

const { APP, assert, check, client, of, report, server, subscribe, until } = require("./kit.cjs");

const [A, B] = process.env.GATEWAYS.split(",");
const [serverA, serverB] = [server(A), server(B)];

// All events posted so far. Every request must have a signature that the SDK takes and that no other secret makes.
async function told(channel) {
  const posted = await (await fetch(process.env.INBOX)).json();
  const other = server(A, { secret: "another-secret" });
  const all = posted.flatMap(({ headers, body }) => {
    const webhook = serverA.webhook({ headers, rawBody: body });
    assert.ok(webhook.isValid(), `a valid signature: ${JSON.stringify(headers)} ${body}`);
    assert.ok(!other.webhook({ headers, rawBody: body }).isValid());
    assert.ok(!serverA.webhook({ headers, rawBody: `${body} ` }).isValid());
    assert.strictEqual(headers["x-pusher-key"], APP.key);
    assert.ok(Math.abs(webhook.getTime() - Date.now()) < 300000);
    return webhook.getEvents();
  });
  return all.filter((event) => event.channel === channel);
}

const names = (events) => events.map((event) => event.name);

async function toldOf(channel, ...expected) {
  await until(`${expected} of ${channel}`, async () => {
    const seen = names(await told(channel));
    return expected.every((name) => seen.includes(name));
  });
  return told(channel);
}

check("occupied and vacated once, though the client moves between nodes again and again", async () => {
  const name = "hook-moves";
  const nodes = [await client(A), await client(B)];
  await subscribe(nodes[0], name);
  await toldOf(name, "channel_occupied");
  for (let turn = 1; turn <= 6; turn += 1) {
    await subscribe(nodes[turn % 2], name);
    nodes[(turn + 1) % 2].unsubscribe(name);
  }
  // Gone for a moment from everywhere, and back.
  nodes[0].unsubscribe(name);
  await until("nobody is there", async () => {
    const answer = await serverB.get({ path: `/channels/${name}` });
    return (await answer.json()).occupied === false;
  });
  await subscribe(nodes[1], name);
  nodes[1].unsubscribe(name);
  await toldOf(name, "channel_vacated");
  // A mark: another channel is told of after this one.
  const after = await client(B);
  await subscribe(after, "hook-mark");
  await toldOf("hook-mark", "channel_occupied");
  const events = (await told(name)).filter((event) => event.name.startsWith("channel_"));
  assert.deepStrictEqual(names(events), ["channel_occupied", "channel_vacated"]);
});

check("member_added and member_removed once for each user", async () => {
  const name = "presence-hook";
  const user = { user_id: "ada" };
  const both = [await client(A, { presence: user }), await client(B, { presence: user })];
  for (const pusher of both) await subscribe(pusher, name);
  for (const pusher of both) pusher.disconnect();
  const events = await toldOf(name, "member_removed", "channel_vacated");
  const members = events.filter((event) => event.name.startsWith("member_"));
  assert.deepStrictEqual(members, [
    { name: "member_added", channel: name, user_id: "ada" },
    { name: "member_removed", channel: name, user_id: "ada" },
  ]);
  assert.strictEqual(names(events).filter((event) => event === "channel_occupied").length, 1);
});

check("client_event with its sender, cache_miss, subscription_count", async () => {
  const name = "presence-cache-hook";
  const pusher = await client(A, { presence: { user_id: "ada" } });
  const channel = await subscribe(pusher, name);
  await until("the miss", () => of(channel, "pusher:cache_miss").length === 1);
  channel.trigger("client-wave", { hand: "left" });
  const events = await toldOf(name, "cache_miss", "client_event");
  const wave = events.find((event) => event.name === "client_event");
  assert.deepStrictEqual(
    { ...wave, data: JSON.parse(wave.data) },
    {
      name: "client_event",
      channel: name,
      event: "client-wave",
      data: { hand: "left" },
      socket_id: pusher.connection.socket_id,
      user_id: "ada",
    },
  );
  await subscribe(await client(B), "hook-count");
  const counts = await toldOf("hook-count", "subscription_count");
  const count = counts.find((event) => event.name === "subscription_count");
  assert.strictEqual(count.subscription_count, 1);
});

report();
