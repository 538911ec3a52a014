// pusher-js behind a router: some are asked to come back when a gateway is added (4200), and are subscribed again by
// themselves. Who was not asked has heard everything. Publishes numbers until somebody else publishes `end`.
"use strict";

const { APP, assert, check, client, of, report, server, subscribe, until } = require("./kit.cjs");

const ROUTER = process.env.ROUTER;
const CLIENTS = Number(process.env.CLIENTS);
const CHANNEL = "room";

check("clients of Pusher move and are subscribed again", async () => {
  const open = async () => {
    const pusher = await client(ROUTER, { key: APP.key });
    const codes = [];
    pusher.connection.bind("error", ({ data }) => codes.push(data?.code));
    return { pusher, codes, channel: await subscribe(pusher, CHANNEL) };
  };
  const clients = await Promise.all(Array.from({ length: CLIENTS }, open));
  console.log(JSON.stringify({ ready: true }));
  const heard = ({ channel }) => of(channel, "n");
  let count = 0;
  while (!clients.some((one) => of(one.channel, "end").length > 0)) {
    await server(ROUTER).trigger(CHANNEL, "n", count++);
  }
  // Who was on the way gets what comes from now on.
  await until("all are back and hear what is published", async () => {
    await server(ROUTER).trigger(CHANNEL, "last", "");
    return clients.every(({ pusher, channel }) => pusher.connection.state === "connected" && of(channel, "last").length > 0);
  });
  const expected = Array.from({ length: count }, (_, number) => number);
  const moved = clients.filter(({ codes }) => codes.length > 0);
  for (const one of clients) {
    assert.deepStrictEqual(one.codes, moved.includes(one) ? [4200] : []);
    if (!moved.includes(one)) assert.deepStrictEqual(heard(one), expected);
  }
  console.log(JSON.stringify({ moved: moved.length }));
});

report();
