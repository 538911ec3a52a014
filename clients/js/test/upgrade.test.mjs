// The gateway under its clients becomes another process: none is closed, and each has every message once and in order.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, test } from "node:test";
import { promisify } from "node:util";
import { Tidegate } from "../dist/index.js";
import { Site, binary, eventually, publish } from "./site.mjs";

const here = new Site();
const clients = [];
let successor;
let stop = false;
after(async () => {
  stop = true;
  for (const { client } of clients) client.close();
  if (successor) process.kill(successor, "SIGKILL");
  await here.end();
});

test("an upgrade of the gateway closes nobody", async () => {
  const gateway = await here.gateway();
  for (const transport of ["websocket", "sse"]) {
    const client = new Tidegate(gateway.url, { transport, token: "dev-key" });
    const got = [];
    const closed = [];
    client.on("close", ({ code, reason }) => closed.push(`${code} ${reason}`));
    const subscription = client.subscribe("room", ({ data }) => got.push(Number(data)));
    subscription.on("gap", ({ reason }) => got.push(`gap: ${reason}`));
    clients.push({ client, got, closed });
    await eventually("it is subscribed", () => subscription.position);
  }

  const published = (async () => {
    let number = 0;
    for (; !stop; number++) await publish(gateway.url, "room", `${number}`);
    return number;
  })();
  const [{ client, got }] = clients;
  await eventually("publications come", () => got.length > 0);
  const { stdout } = await promisify(execFile)(binary, ["upgrade", gateway.internal]);
  successor = Number(/process (\d+)/.exec(stdout)[1]);
  await gateway.ended;
  const before = got.length;
  await eventually("more come from the new process", () => got.length > before + 10);
  stop = true;
  const number = await published;
  const all = Array.from({ length: number }, (_, index) => index);
  for (const { got, closed } of clients) {
    await eventually("everything is here", () => got.length >= all.length);
    assert.deepEqual(got, all);
    assert.deepEqual(closed, []);
  }
  // Commands work on: the new process knows what the old one kept.
  const { publications } = await client.history("room", 1);
  assert.equal(Number(publications[0].data), number - 1);
});
