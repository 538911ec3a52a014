// Two users of one channel on two nodes, of which one is killed when this says that it is ready.
"use strict";

const { assert, check, connected, follow, report, subscribed, token, until } = require("./kit.cjs");

const [KILLED, STAYS] = process.env.GATEWAYS.split(",");
const of = (user) => ({ token: token({ sub: user, channels: ["room:*"] }) });

check("who was on a node that is killed leaves, once", async () => {
  const watcher = await connected(STAYS, of("bob"));
  const subscription = follow(watcher, "room:lease", { joinLeave: true });
  const heard = [];
  for (const event of ["join", "leave"]) subscription.on(event, ({ info }) => heard.push([event, info.user]));
  await subscription.ready(45000);
  await subscribed(await connected(KILLED, of("ada")), "room:lease");
  await until("ada came", () => heard.length === 1);
  const users = async () => Object.values((await watcher.presence("room:lease")).clients).map(({ user }) => user).sort();
  assert.deepStrictEqual(await users(), ["ada", "bob"]);
  assert.deepStrictEqual(await watcher.presenceStats("room:lease"), { numClients: 2, numUsers: 2 });
  console.log(JSON.stringify({ ready: true }));
  await until("ada left", () => heard.length === 2);
  assert.deepStrictEqual(heard, [["join", "ada"], ["leave", "ada"]]);
  assert.deepStrictEqual(await users(), ["bob"]);
  assert.deepStrictEqual(await watcher.presenceStats("room:lease"), { numClients: 1, numUsers: 1 });
});

report();
