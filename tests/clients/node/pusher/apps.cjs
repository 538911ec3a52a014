// Two apps with the same channel names, and a list of apps that changes.
"use strict";

const fs = require("node:fs");
const { assert, check, client, of, report, server, subscribe, until } = require("./kit.cjs");

const [A] = process.env.GATEWAYS.split(",");
const FILE = process.env.APPS_FILE;
const TWO = { appId: "two", key: "key-two", secret: "secret-two" };

const entry = (id, key, enabled) => `[apps.${id}]\nkey = "${key}"\nsecret = "secret-${id}"\nenabled = ${enabled}\n`;

// As Kubernetes does: another file takes the place of the old one.
function write(text) {
  fs.writeFileSync(`${FILE}.new`, text);
  fs.renameSync(`${FILE}.new`, FILE);
}

async function connects(key) {
  const pusher = await client(A, { key });
  pusher.disconnect();
}

check("apps are apart, and one that is switched off loses its clients", async () => {
  const one = await client(A);
  const two = await client(A, { key: TWO.key });
  const [inOne, inTwo] = [await subscribe(one, "same-name"), await subscribe(two, "same-name")];
  await server(A).trigger("same-name", "of-one", {});
  await server(A, TWO).trigger("same-name", "of-two", {});
  await until("each has its own", () => of(inOne, "of-one").length === 1 && of(inTwo, "of-two").length === 1);
  await server(A).trigger("same-name", "mark", {});
  await server(A, TWO).trigger("same-name", "mark", {});
  await until("the marks", () => of(inOne, "mark").length === 1 && of(inTwo, "mark").length === 1);
  assert.strictEqual(of(inOne, "of-two").length + of(inTwo, "of-one").length, 0);
  const counts = await (await server(A, TWO).get({ path: "/channels" })).json();
  assert.deepStrictEqual(counts, { channels: { "same-name": {} } });
  // A signature of one app is none in the other.
  const stranger = server(A, { ...TWO, secret: "dev-secret" });
  const refused = await stranger.trigger("same-name", "e", {}).then(() => undefined, (error) => error.status);
  assert.strictEqual(refused, 401);

  const codes = [];
  two.connection.bind("error", ({ data }) => data && codes.push(data.code));
  write(entry("two", TWO.key, false) + entry("three", "key-three", true));
  await until("the app's client is out", () => two.connection.state === "disconnected");
  assert.ok(codes.includes(4003), `${codes}`);
  await connects("key-three");

  // A file that cannot be read changes nothing.
  write("[apps.three]\nkey = 3\n");
  write("no TOML");
  await connects("key-three");
  write(entry("two", TWO.key, true) + entry("three", "key-three", true));
  await until("the app is back", async () => {
    const answer = await server(A, TWO).get({ path: "/channels" }).catch(() => undefined);
    return answer && answer.status === 200;
  });
  await connects(TWO.key);
  assert.strictEqual(one.connection.state, "connected");
});

report();
