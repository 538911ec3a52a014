// 500 presence members on a node that dies: who stays is told of each exactly once, and the lists are right again.
"use strict";

const { assert, check, client, member, of, report, server, subscribe, until } = require("./kit.cjs");

const [A, B, C] = process.env.GATEWAYS.split(",");
const MEMBERS = Number(process.env.MEMBERS);
const NAME = "presence-crowd";

const join = async (gateway, id) => (await member(gateway, NAME, { user_id: id })).socket;

check("a node killed under 500 presence members", async () => {
  const [onA, onC] = [
    await subscribe(await client(A, { presence: { user_id: "stays-a" } }), NAME),
    await subscribe(await client(C, { presence: { user_id: "stays-c" } }), NAME),
  ];
  const ids = Array.from({ length: MEMBERS }, (_, n) => `member-${n}`);
  for (let n = 0; n < ids.length; n += 50) {
    await Promise.all(ids.slice(n, n + 50).map((id) => join(B, id)));
  }
  // One of them is connected elsewhere too, and so is not gone.
  const twice = await join(C, "member-0");
  await until("all are seen", () => onA.members.count === MEMBERS + 2 && onC.members.count === MEMBERS + 2);
  console.log(JSON.stringify({ ready: true }));

  const gone = ids.slice(1).sort();
  for (const channel of [onA, onC]) {
    await until("all are told", () => of(channel, "pusher:member_removed").length >= gone.length);
    assert.deepStrictEqual(of(channel, "pusher:member_removed").map((one) => one.id).sort(), gone);
    assert.strictEqual(channel.members.count, 3);
  }
  for (const node of [A, C]) {
    const { users } = await (await server(node).get({ path: `/channels/${NAME}/users` })).json();
    assert.deepStrictEqual(users.map((user) => user.id).sort(), ["member-0", "stays-a", "stays-c"]);
  }
  // The node's clients come back elsewhere: joined once each.
  const back = await join(A, "member-1");
  await until("one is back", () => of(onC, "pusher:member_added").filter((one) => one.id === "member-1").length === 2);
  assert.strictEqual(onC.members.count, 4);
  for (const socket of [twice, back]) socket.close();
});

report();
