// Clients with a key each behind a router: those that belong to a gateway that is added are asked to come back (3011), and
// nobody misses anything. Publishes numbers until somebody else publishes `end`.
"use strict";

const { assert, check, client, publish, report, subscribed, until } = require("./kit.cjs");

const ROUTER = process.env.ROUTER;
const CLIENTS = Number(process.env.CLIENTS);
const CHANNEL = "kept:a";

check("clients of Centrifugo's protocol move and miss nothing", async () => {
  const endpoint = `${ROUTER.replace("http", "ws")}/connection/websocket`;
  const open = (_, at) => client(ROUTER, { transports: `${endpoint}?key=k${at}` });
  const clients = Array.from({ length: CLIENTS }, open);
  const all = await Promise.all(clients.map((made) => subscribed(made, CHANNEL)));
  console.log(JSON.stringify({ ready: true }));
  let count = 0;
  const has_ended = (one) => one.got.includes("end");
  while (!all.some(has_ended)) await publish(ROUTER, CHANNEL, count++);
  await publish(ROUTER, CHANNEL, "last");
  await until("all have all", () => all.every((one) => one.got.includes("last")));
  const expected = Array.from({ length: count }, (_, number) => number);
  for (const one of all) {
    assert.deepStrictEqual(one.got.filter(Number.isInteger), expected);
  }
  // Each was asked once at most; no other reason to come back was there.
  const asked = clients.map((made) => made.seen.filter(({ event }) => event === "connecting").slice(1).map(({ code }) => code));
  const moved = asked.filter((codes) => codes.length > 0);
  for (const codes of moved) assert.deepStrictEqual(codes, [3011]);
  console.log(JSON.stringify({ moved: moved.length }));
});

report();
