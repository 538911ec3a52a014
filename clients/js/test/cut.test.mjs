// A proxy that cuts connections without a word: what is published meanwhile comes, also before a client's first message.
import assert from "node:assert/strict";
import { connect, createServer } from "node:net";
import { after, test } from "node:test";
import { Tidegate } from "../dist/index.js";
import { Site, eventually, publish } from "./site.mjs";

const here = new Site();
const proxies = [];
after(async () => {
  for (const proxy of proxies) proxy.cut();
  await here.end();
});

/** Passes bytes on to `url` until it is cut, and again once it is mended, on the same port. */
async function proxyBefore(url) {
  const sockets = new Set();
  const server = createServer((client) => {
    const upstream = connect(Number(new URL(url).port), "127.0.0.1");
    for (const [socket, other] of [[client, upstream], [upstream, client]]) {
      sockets.add(socket);
      socket.pipe(other);
      socket.on("error", () => other.destroy()).on("close", () => (sockets.delete(socket), other.destroy()));
    }
  });
  const listen = (port) => new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  await listen(0);
  const { port } = server.address();
  const cut = () => {
    server.close();
    for (const socket of sockets) socket.resetAndDestroy();
  };
  const proxy = { url: `http://127.0.0.1:${port}`, cut, mend: () => listen(port) };
  proxies.push(proxy);
  return proxy;
}

for (const transport of ["websocket", "sse"]) {
  test(`what was published while a proxy had cut a new client comes, over ${transport}`, async () => {
    const { url } = await here.gateway();
    const proxy = await proxyBefore(url);
    for (const round of [1, 2, 3]) {
      const channel = `${transport}-${round}`;
      const client = new Tidegate(proxy.url, { transport, backoff: { min: 50, max: 200 } });
      const got = [];
      let closes = 0;
      client.on("close", () => closes++);
      const subscription = client.subscribe(channel, ({ data }) => got.push(data));
      subscription.on("gap", ({ reason }) => got.push(`gap: ${reason}`));
      await eventually("it knows where the channel stands, of which nothing came", () => subscription.position);
      proxy.cut();
      for (const data of ["1", "2", "3"]) await publish(url, channel, data);
      await eventually("it has tried to come back, in vain", () => closes >= 2);
      await proxy.mend();
      await eventually("all of it is here", () => got.length === 3);
      await publish(url, channel, "4");
      await eventually("it goes on", () => got.length === 4);
      assert.deepEqual(got.map(String), ["1", "2", "3", "4"]);
      client.close();
    }
  });
}
