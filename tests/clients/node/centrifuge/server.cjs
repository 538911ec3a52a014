// Centrifugo's server API by `cent.js` (npm): every call that it has, against one node; clients of the other see what it does.
"use strict";

const { CentClient } = require("cent.js");
const kit = require("./kit.cjs");
const { DEADLINE_MS } = require("../cases.cjs");
const { assert, check, client, connected, publish, subscribed, token, until } = kit;

const [ONE, TWO] = process.env.GATEWAYS.split(",");
const api = new CentClient({ url: `${TWO}/api`, apiKey: "dev-key" });

const names = (given) => Object.keys(given).sort();

check("publications and history", async () => {
  const subscription = await subscribed(await connected(ONE), "news:cent");
  const first = await api.publish({ channel: "news:cent", data: { n: 1 } });
  assert.strictEqual(first.offset, 1);
  await api.publish({ channel: "news:cent", data: { n: 2 }, tags: { event: "e" } });
  // Its answer is typed as a list there; it is what the server answers.
  const { responses } = await api.broadcast({ channels: ["news:cent", "plain:cent"], data: { n: 3 } });
  assert.deepStrictEqual(responses, [{ result: { offset: 3, epoch: first.epoch } }, { result: {} }]);
  assert.deepStrictEqual(await api.publish({ channel: "news:cent", data: { n: 4 }, skip_history: true }), {});
  await until("four publications", () => subscription.got.length === 4);
  assert.deepStrictEqual(subscription.got, [1, 2, 3, 4].map((n) => ({ n })));
  assert.deepStrictEqual(subscription.publications[1].tags, { event: "e" });
  const page = await api.getHistory({ channel: "news:cent", limit: 10, since: first });
  assert.deepStrictEqual([page.publications.map(({ data }) => data.n), page.offset, page.epoch], [[2, 3], 3, first.epoch]);
  const newest = await api.getHistory({ channel: "news:cent", limit: 1, reverse: true });
  assert.deepStrictEqual(newest.publications.map(({ offset }) => offset), [3]);
  assert.deepStrictEqual(await api.removeHistory({ channel: "news:cent" }), {});
  const removed = await api.getHistory({ channel: "news:cent", limit: 10 });
  assert.deepStrictEqual([removed.publications, removed.offset], [[], 3]);
});

check("presence and the cluster", async () => {
  const made = await connected(ONE, { token: token({ sub: "eve", channels: ["room:*"], info: { name: "Eve" } }) });
  await subscribed(made, "room:cent");
  const channel = { channel: "room:cent" };
  const there = await until("eve is there", async () => {
    const { presence } = await api.getPresence(channel);
    return Object.values(presence)[0];
  });
  assert.deepStrictEqual([there.user, there.conn_info], ["eve", { name: "Eve" }]);
  assert.deepStrictEqual(await api.getPresenceStats(channel), { num_clients: 1, num_users: 1 });
  const { nodes } = await until("both nodes", async () => {
    const info = await api.getInfo();
    return info.nodes.length === 2 && info;
  });
  assert.deepStrictEqual(nodes.map(({ name }) => name).sort(), ["g1", "g2"]);
  assert.deepStrictEqual((await api.getChannels({ pattern: "room:cen*" })).channels, { "room:cent": { num_clients: 1 } });
  assert.ok(names((await api.getChannels()).channels).includes("room:cent"));
});

check("a subscription that the server makes has info of its own", async () => {
  const made = await connected(ONE, { token: token({ sub: "dan" }) });
  assert.deepStrictEqual(await api.subscribe({ user: "dan", channel: "room:dan", info: { seat: 1 } }), {});
  const there = await until("dan is there", async () => Object.values((await api.getPresence({ channel: "room:dan" })).presence)[0]);
  assert.deepStrictEqual(there, { user: "dan", client: there.client, chan_info: { seat: 1 } });
  made.disconnect();
});

check("orders reach clients of another node", async () => {
  const heard = [];
  const made = client(ONE, { token: token({ sub: "ann" }) });
  for (const event of ["subscribed", "publication", "unsubscribed"]) {
    made.on(event, ({ channel, data }) => heard.push([event, channel, data]));
  }
  await made.ready(DEADLINE_MS);
  const order = { user: "ann", channel: "news:ann" };
  assert.deepStrictEqual(await api.subscribe({ ...order, data: { why: 1 } }), {});
  await until("subscribed", () => heard.length === 1);
  await publish(ONE, "news:ann", { n: 1 });
  await until("a publication", () => heard.length === 2);
  assert.deepStrictEqual(await api.unsubscribe(order), {});
  await until("unsubscribed", () => heard.length === 3);
  assert.deepStrictEqual(heard, [
    ["subscribed", "news:ann", { why: 1 }],
    ["publication", "news:ann", { n: 1 }],
    ["unsubscribed", "news:ann", undefined],
  ]);
  assert.deepStrictEqual(await api.refresh({ user: "ann", expire_at: Math.floor(Date.now() / 1000) + 600 }), {});
  assert.deepStrictEqual(await api.disconnect({ user: "ann" }), {});
  const closed = await until("disconnected", () => made.seen.find(({ event }) => event === "disconnected"));
  assert.strictEqual(closed.code, 3503);
});

check("many commands to the one endpoint", async () => {
  const results = await api.pipeline([
    { method: "publish", params: { channel: "news:many", data: { n: 1 } } },
    { method: "history", params: { channel: "news:many", limit: 1 } },
    { method: "presence_stats", params: { channel: "plain:many" } },
    { method: "info", params: {} },
  ]);
  const [published, { publications }, refused, { nodes }] = results;
  assert.deepStrictEqual([published.offset, publications.map(({ data }) => data), refused], [1, [{ n: 1 }], undefined]);
  assert.ok(nodes.length >= 1);
});

check("what is refused is thrown", async () => {
  await assert.rejects(api.publish({ channel: "a b", data: {} }));
  await assert.rejects(api.getHistory({ channel: "plain:cent" }));
  const wrong = new CentClient({ url: `${TWO}/api`, apiKey: "wrong" });
  const answer = await wrong.post(`${TWO}/api/info`, "{}");
  assert.strictEqual(answer.status, 401);
});

kit.report();
