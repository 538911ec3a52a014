// A gateway that refuses what comes too fast: the client asks again by itself.
"use strict";

const { DEADLINE_MS } = require("../cases.cjs");
const { assert, check, connected, follow, publish, report, until } = require("./kit.cjs");

const [ONE, TWO] = process.env.GATEWAYS.split(",");

check("a subscription that is refused for now stands in the end", async () => {
  const made = await connected(ONE);
  const all = Array.from({ length: 4 }, (_, number) => follow(made, `plain:${number}`));
  await Promise.all(all.map((subscription) => subscription.ready(DEADLINE_MS)));
  const refused = () => all.flatMap(({ seen }) => seen.filter(({ event, error }) => event === "error" && error.code === 111));
  await until("one is refused", () => {
    for (const subscription of all.filter(({ state }) => state === "subscribed")) {
      subscription.unsubscribe();
      subscription.subscribe();
    }
    return refused().length > 0;
  });
  assert.ok(refused().every(({ error }) => error.temporary));
  await Promise.all(all.map((subscription) => subscription.ready(DEADLINE_MS)));
  for (const { channel } of all) await publish(TWO, channel, channel);
  for (const { got, channel } of all) await until("it is told", () => got.at(-1) === channel);
  assert.deepStrictEqual(made.seen.map(({ event }) => event), ["connecting", "connected"]);
});

report();
