// Who joins and who leaves, over both transports.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Tidegate } from "../dist/index.js";
import { Site, binary, eventually } from "./site.mjs";

const here = new Site();
const directory = mkdtempSync(join(tmpdir(), "tidegate-presence-"));
after(async () => {
  await here.end();
  rmSync(directory, { recursive: true });
});

const secret = "0123456789abcdef0123456789abcdef";
const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const token = (sub) => {
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub, channels: ["room:*"], info: { of: sub } })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
};

writeFileSync(
  join(directory, "gateway.toml"),
  `[[auth.jwt]]\nalgorithm = "HS256"\nsecret = "${secret}"\nrequire_exp = false\n[namespaces.room]\npresence = true\n`,
);
const ports = ["--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0"];
const gateway = here.start(["gateway", "--config", join(directory, "gateway.toml"), ...ports], binary);

for (const transport of ["sse", "websocket"]) {
  // Node 20 has a WebSocket behind a flag, which `npm test` sets.
  test(`members, joins and leaves come over ${transport}`, async () => {
    const { url } = await gateway;
    const channel = `room:${transport}`;
    const got = [];
    const ada = new Tidegate(url, { transport, token: token("ada") });
    const room = ada.subscribe(channel, undefined, { joinLeave: true });
    room.on("members", ({ members, count }) => got.push(`${members.map(({ user }) => user)} ${count}`));
    for (const name of ["join", "leave"]) {
      room.on(name, ({ user, connections }) => got.push(`${name} ${user} ${connections}`));
    }
    await eventually("the list is there", () => got.length === 1);
    const bob = new Tidegate(url, { transport: "sse", token: token("bob") });
    bob.subscribe(channel);
    await eventually("bob has joined", () => got.length === 2);
    bob.close();
    await eventually("bob has left", () => got.length === 3);
    assert.deepEqual(got, ["ada 1", "join bob 1", "leave bob 0"]);
    ada.close();
  });
}
