// The client over event streams, against kills, drains and refusals of real processes.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Tidegate } from "../dist/index.js";
import { Site, eventually, freePort, publish } from "./site.mjs";

const sites = [];
const site = () => {
  const site = new Site();
  sites.push(site);
  return site;
};
after(() => Promise.all(sites.map((site) => site.end())));

/** What a client got, channel by channel. */
function watch(client, ...channels) {
  const got = [];
  for (const channel of channels) {
    const subscription = client.subscribe(channel, ({ data }) => got.push(`${channel}=${data}`));
    subscription.on("gap", ({ reason }) => got.push(`${channel}!${reason}`));
  }
  return got;
}

const soon = { transport: "sse", backoff: { min: 50, max: 500 } };

test("several channels arrive on one connection", async () => {
  const { url } = await site().gateway();
  const client = new Tidegate(url, soon);
  let opened = 0;
  client.on("open", () => opened++);
  const got = watch(client, "a", "b");
  await eventually("it is open", () => opened);
  await publish(url, "a", "1");
  await publish(url, "b", "2");
  await eventually("both came", () => got.length === 2);
  assert.deepEqual(got.sort(), ["a=1", "b=2"]);
  assert.equal(opened, 1);
  // Another channel joins without a loss on the first two.
  client.subscribe("c", ({ data }) => got.push(`c=${data}`));
  await eventually("it is open again", () => opened === 2);
  for (const channel of ["a", "b", "c"]) await publish(url, channel, "3");
  await eventually("all three came", () => got.length === 5);
  client.close();
});

test("what a killed gateway's clients miss, they get from another", async () => {
  const here = site();
  const redis = await here.redis();
  const gateways = [await here.gateway("--backplane", redis), await here.gateway("--backplane", redis)];
  const members = gateways.map(({ url }) => url.slice(7)).join();
  const router = await here.router("--members", `static:${members}`);
  const closes = [];
  const all = [];
  // Of so many keys, some are placed on each gateway; of four, one time in sixteen none was on the one that is killed.
  const clients = Array.from({ length: 16 }, (_, key) => {
    const client = new Tidegate(router.url, { ...soon, fetch: (url, init) => fetch(`${url}&key=${key}`, init) });
    client.on("close", (close) => closes.push(close));
    all.push(client);
    return watch(client, "a", "b");
  });
  await eventually("every client stands somewhere", async () => {
    // The place of a channel that never had a message is known to its node alone.
    for (const channel of ["a", "b"]) await publish(gateways[0].url, channel, "x");
    return clients.every((got) => got.includes("a=x") && got.includes("b=x"));
  });
  gateways[0].kill("SIGKILL");
  for (const n of [1, 2, 3]) {
    await publish(gateways[1].url, "a", `after ${n}`);
    await publish(gateways[1].url, "b", `after ${n}`);
  }
  await eventually("every client has all of it", () =>
    clients.every((got) => got.filter((text) => text.includes("after")).length === 6),
  );
  for (const got of clients) {
    for (const channel of ["a", "b"]) {
      const texts = got.filter((text) => text.startsWith(`${channel}=after`));
      assert.deepEqual(texts, [1, 2, 3].map((n) => `${channel}=after ${n}`));
    }
    assert.ok(!got.some((text) => text.includes("!")), `${got}`);
  }
  for (const client of all) client.close();
  assert.ok(closes.length > 0 && closes.every(({ retryIn }) => retryIn !== undefined));
});

test("a restart without history is a gap, and the client goes on", async () => {
  const here = site();
  const port = await freePort();
  const address = `127.0.0.1:${port}`;
  const start = () =>
    here.start(["gateway", "--dev", "--listen", address, "--internal", "127.0.0.1:0"]);
  const first = await start();
  const client = new Tidegate(first.url, soon);
  const got = watch(client, "a");
  await eventually("it stands somewhere", async () => (await publish(first.url, "a", "x"), got.length));
  // More than one may be on its way; all of them come before this one.
  await publish(first.url, "a", "last");
  await eventually("it has all of it", () => got.includes("a=last"));
  got.length = 0;
  // A drain: it ends by itself, with 0.
  first.kill("SIGTERM");
  assert.equal((await first.ended).code, 0);
  const second = await start();
  await eventually("the gap is told", () => got.includes("a!unrecoverable"));
  await publish(second.url, "a", "new");
  await eventually("it goes on", () => got.includes("a=new"));
  assert.deepEqual(got, ["a!unrecoverable", "a=new"]);
  client.close();
});

test("a refusal is told with its reason, and is final without a new token", async () => {
  const { url } = await site().gateway();
  const client = new Tidegate(url, { ...soon, token: "not-a-token" });
  const closed = new Promise((resolve) => client.on("close", resolve));
  client.subscribe("a");
  const { code, reason, retryIn } = await closed;
  assert.equal(code, 401);
  assert.match(reason, /credentials/);
  assert.equal(retryIn, undefined);
});

test("a token callback is asked again", async () => {
  const { url } = await site().gateway();
  let asked = 0;
  const token = () => (++asked < 3 ? "not-a-token" : undefined);
  const client = new Tidegate(url, { ...soon, token });
  const open = new Promise((resolve) => client.on("open", resolve));
  client.subscribe("a");
  assert.equal(await open, "sse");
  assert.equal(asked, 3);
  await assert.rejects(client.publish("a", 1), /event stream takes no commands/);
  client.close();
});

test("CommonJS has the same", async () => {
  const { createRequire } = await import("node:module");
  const required = createRequire(import.meta.url)("../dist/index.cjs");
  assert.deepEqual(Object.keys(required).sort(), ["Subscription", "Tidegate", "TidegateError"]);
});
