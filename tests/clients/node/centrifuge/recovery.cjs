// A client behind a router whose nodes end under it: it comes back to another, and nothing is missing, twice or out of order.
"use strict";

const { DEADLINE_MS } = require("../cases.cjs");
const { assert, check, connected, follow, publishToAll, report, until } = require("./kit.cjs");

const ROUTER = process.env.ROUTER;
const CODES = JSON.parse(process.env.CODES);
// All of them are asked for, and recovered, in one frame.
const CHANNELS = Array.from({ length: Number(process.env.CHANNELS) }, (_, number) => `news:${number}`);
const MISSED = CHANNELS.length > 100 ? 2 : 10;

const node = (made) => made.seen.findLast(({ event }) => event === "connected").client.split(".")[0];

// Each time it says on which node it is, that node ends. What is published meanwhile is missed by its connection.
check("a node that ends costs nothing", async () => {
  const made = await connected(ROUTER);
  const subscriptions = CHANNELS.map((channel) => follow(made, channel));
  await Promise.all(subscriptions.map((subscription) => subscription.ready(DEADLINE_MS)));
  let count = 0;
  const next = () => publishToAll(ROUTER, CHANNELS, count).then(() => count++);
  await next();
  for (const [round, code] of CODES.entries()) {
    const before = node(made);
    console.log(JSON.stringify({ ready: round, node: before }));
    const cuts = () => made.seen.filter(({ event }) => event === "connecting").slice(1);
    await until("it is cut", () => cuts().length === round + 1);
    assert.strictEqual(cuts()[round].code, code);
    for (let number = 0; number < MISSED; number++) await next();
    await until("it is back", () => made.state === "connected" && node(made) !== before);
    await next();
    await until(`${count} in each channel`, () => subscriptions.every(({ got }) => got.length >= count));
    for (const subscription of subscriptions) {
      assert.deepStrictEqual(subscription.got, Array.from({ length: count }, (_, number) => number));
      const back = subscription.seen.findLast(({ event }) => event === "subscribed");
      assert.deepStrictEqual([back.wasRecovering, back.recovered], [true, true]);
    }
  }
});

report();
