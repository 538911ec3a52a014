// Clients on a gateway that is replaced again and again while numbers are published, over REST and by one of them: nobody is
// closed, nothing is missed, doubled or out of order, and nobody is told that somebody came or went.
"use strict";

const kit = require("./kit.cjs");
const { assert, check, connected, decoded, encoded, publish, report, subscribed, token, until } = kit;

const GATEWAY = process.env.GATEWAYS;
const ROUNDS = 3;
const AT_LEAST = 20;
const LONG = "what all of them have in common, ".repeat(10);

const say = (what) => console.log(JSON.stringify(what));
const numbers = (count) => Array.from({ length: count }, (_, number) => number);
const names = (made) => made.seen.map(({ event }) => event);

check("clients stay while the gateway is replaced", async () => {
  const of = (sub, more) => ({ token: token({ sub, channels: ["room:*"], publish: ["room:*", "diff:*"], info: { name: sub }, ...more }) });
  const ada = await connected(GATEWAY, of("ada"));
  const bob = await connected(GATEWAY, of("bob", { subs: { "news:server": { override: { force_recovery: { value: true } } } } }));
  const anybody = await connected(GATEWAY);
  const all = [ada, bob, anybody];
  const own = [];
  bob.on("publication", ({ channel, data }) => own.push([channel, decoded(data)]));
  const told = await Promise.all(all.flatMap((made) => ["news:a", "plain:a"].map((name) => subscribed(made, name))));
  const getToken = async ({ channel }) => token({ sub: "ada", channel, override: { presence: { value: false } } });
  const vault = await subscribed(ada, "vault:a", { getToken });
  const differs = await subscribed(bob, "diff:d", { delta: "fossil" });
  const signs = await subscribed(anybody, "plain:signs");
  const adasRoom = await subscribed(ada, "room:q", { joinLeave: true });
  const came = [];
  for (const event of ["join", "leave"]) adasRoom.on(event, ({ info }) => came.push([event, info.user]));
  const rooms = [adasRoom, await subscribed(bob, "room:q", { joinLeave: true })];
  await until("bob has come", () => came.some(([, user]) => user === "bob"));
  came.length = 0;
  const presence = async () => Object.values((await ada.presence("room:q")).clients).map(({ client }) => client).sort();
  const before = await presence();
  assert.strictEqual(before.length, 2);

  // Each is answered before the next is sent.
  let [sent, is_over] = [0, false];
  const sender = (async () => {
    while (!is_over) {
      await ada.publish("diff:d", encoded({ number: sent, text: LONG }));
      await ada.publish("room:q", encoded(sent++));
      // At most 300 of both in a second: 256 KiB are what a connection may publish in one.
      await new Promise((done) => setTimeout(done, 3));
    }
  })();
  const more = async (what, list) => {
    const wanted = list.length + AT_LEAST;
    await until(`more ${what}`, () => list.length >= wanted);
  };
  const moreOfBoth = async () => {
    await more("numbers", told[0].got);
    await more("numbers of ada", rooms[1].got);
  };
  say({ begun: true });
  for (let round = 1; round <= ROUNDS; round++) {
    await moreOfBoth();
    say({ upgrade: round });
    await until("it was replaced", () => signs.got.length === round);
    await moreOfBoth();
  }
  is_over = true;
  await sender;
  say({ end: true });
  await until("the last", () => signs.got.length > ROUNDS);
  const total = signs.got[ROUNDS];
  for (const subscription of told) {
    await until("all numbers", () => subscription.got.length >= total);
    assert.deepStrictEqual(subscription.got, numbers(total));
  }
  for (const room of rooms) {
    await until("all of ada's", () => room.got.length >= sent);
    assert.deepStrictEqual(room.got, numbers(sent));
    assert.ok(room.publications.every(({ info }) => info.user === "ada"));
  }
  await until("all differences", () => differs.got.length >= sent);
  assert.deepStrictEqual(differs.got.map(({ number }) => number), numbers(sent));
  assert.ok(differs._deltaNumDelta > sent / 2, `${differs._deltaNumDelta} were differences`);
  for (const made of all) assert.deepStrictEqual(names(made), ["connecting", "connected"]);
  for (const subscription of [...told, ...rooms, vault, differs]) assert.deepStrictEqual(names(subscription), ["subscribing", "subscribed"]);
  assert.deepStrictEqual(came, []);
  assert.deepStrictEqual(await presence(), before);

  // All that they could do, they can: what the server has subscribed to is told, who comes back recovers, who goes is told of.
  await publish(GATEWAY, "news:server", 1);
  await until("it is told", () => own.length === 1);
  assert.deepStrictEqual(own, [["news:server", 1]]);
  anybody.disconnect();
  await publish(GATEWAY, "news:a", "missed");
  anybody.connect();
  const back = told[4];
  await until("what was missed", () => back.got.at(-1) === "missed");
  assert.deepStrictEqual(back.got, [...numbers(total), "missed"]);
  assert.strictEqual(back.seen.filter(({ event }) => event === "subscribed")[1].recovered, true);
  bob.disconnect();
  await until("bob has left", () => came.length > 0);
  assert.deepStrictEqual(came, [["leave", "bob"]]);
});

report();
