// A client behind a router whose nodes end under it: it comes back to another, and nothing is missing, twice or out of order.
"use strict";

const { assert, check, connected, publish, report, subscribed, until } = require("./kit.cjs");

const ROUTER = process.env.ROUTER;
const CODES = JSON.parse(process.env.CODES);

const node = (made) => made.seen.findLast(({ event }) => event === "connected").client.split(".")[0];

// Each time it says on which node it is, that node ends. What is published meanwhile is missed by its connection.
check("a node that ends costs nothing", async () => {
  const made = await connected(ROUTER);
  const subscriptions = [await subscribed(made, "news:a"), await subscribed(made, "news:b")];
  let count = 0;
  const next = () => Promise.all(subscriptions.map(({ channel }) => publish(ROUTER, channel, count))).then(() => count++);
  await next();
  for (const [round, code] of CODES.entries()) {
    const before = node(made);
    console.log(JSON.stringify({ ready: round, node: before }));
    const cuts = () => made.seen.filter(({ event }) => event === "connecting").slice(1);
    await until("it is cut", () => cuts().length === round + 1);
    assert.strictEqual(cuts()[round].code, code);
    for (let number = 0; number < 10; number++) await next();
    await until("it is back", () => made.state === "connected" && node(made) !== before);
    await next();
    for (const subscription of subscriptions) {
      await until(`${count} in ${subscription.channel}`, () => subscription.got.length >= count);
      assert.deepStrictEqual(subscription.got, Array.from({ length: count }, (_, number) => number));
      const back = subscription.seen.findLast(({ event }) => event === "subscribed");
      assert.deepStrictEqual([back.wasRecovering, back.recovered], [true, true]);
    }
  }
});

report();
