// Clients whose network has no WebSocket: an HTTP stream, whose commands go to the other node, and each fallback in Chromium.
"use strict";

const { once } = require("node:events");
const http = require("node:http");
const path = require("node:path");
const { chromium } = require("playwright-core");
const kit = require("./kit.cjs");
const { IS_PROTOBUF, assert, at, check, client, connected, decoded, encoded, follow, publish, rejected, subscribed, token, until } = kit;

const [ONE, TWO] = process.env.GATEWAYS.split(",");
const ada = { sub: "ada", channels: ["room:*"], publish: ["room:*"], info: { name: "Ada" } };

const stream = (address) => [{ transport: "http_stream", endpoint: at(address, "/connection/http_stream") }];
const over = (address, other, options) => connected(address, { transports: stream(address), emulationEndpoint: at(other, "/emulation"), ...options });

check("commands go to whichever node", async () => {
  const made = await over(ONE, TWO, { token: token(ada) });
  const subscription = await subscribed(made, "room:stream");
  await made.publish("room:stream", encoded({ by: "stream" }));
  await publish(TWO, "room:stream", 2);
  await until("both", () => subscription.got.length === 2);
  assert.deepStrictEqual(subscription.got, [{ by: "stream" }, 2]);
  assert.deepStrictEqual(await made.presenceStats("room:stream"), { numClients: 1, numUsers: 1 });
  assert.strictEqual(await rejected(made.publish("news:a", encoded(1))), 103);
  assert.strictEqual(await rejected(made.rpc("sum", encoded(1))), 104);
  await new Promise((resolve) => setTimeout(resolve, 4000));
  assert.deepStrictEqual(made.seen.map(({ event }) => event), ["connecting", "connected"]);
  subscription.unsubscribe();
  await until("it is gone", async () => !(await made.presenceStats("room:stream")).numClients);
});

check("an HTTP stream recovers", async () => {
  const made = await over(TWO, ONE);
  const subscription = await subscribed(made, "news:stream");
  await publish(ONE, "news:stream", 1);
  await until("the first", () => subscription.got.length === 1);
  made.disconnect();
  for (const number of [2, 3]) await publish(ONE, "news:stream", number);
  made.connect();
  await until("all", () => subscription.got.length === 3);
  assert.deepStrictEqual(subscription.got, [1, 2, 3]);
});

check("who is refused for good stops", async () => {
  const wrong = client(ONE, { transports: stream(ONE), emulationEndpoint: at(TWO, "/emulation"), token: "not.a.token" });
  await until("it stops", () => wrong.state === "disconnected");
  assert.strictEqual(wrong.seen.at(-1).code, 3500);
});

// A proxy of the kind that companies have: it does not pass upgrades on.
async function proxy(to) {
  const made = http.createServer((request, answer) => {
    const { hostname, port } = new URL(to);
    const headers = { ...request.headers, host: `${hostname}:${port}` };
    delete headers.upgrade;
    headers.connection = "close";
    const asked = http.request({ hostname, port, path: request.url, method: request.method, headers }, (response) => {
      answer.writeHead(response.statusCode, response.headers);
      response.pipe(answer);
    });
    asked.on("error", () => answer.destroy());
    answer.on("close", () => asked.destroy());
    request.pipe(asked);
  });
  made.on("upgrade", (request, socket) => socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"));
  made.listen(0, "127.0.0.1");
  await once(made, "listening");
  return `http://127.0.0.1:${made.address().port}`;
}

const LIBRARY = path.join(path.dirname(require.resolve("centrifuge")), `../dist/centrifuge${IS_PROTOBUF ? ".protobuf" : ""}.js`);
// Event streams carry text.
const WAYS = ["websocket", "http_stream", ...(IS_PROTOBUF ? [] : ["sse"])];

check("chromium: a page uses each transport, and falls back where there is no WebSocket", async () => {
  const stripped = await proxy(ONE);
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
  const application = http.createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<!doctype html><title>app</title>"));
  application.listen(0, "127.0.0.1");
  await once(application, "listening");
  for (const way of WAYS) {
    const page = await browser.newPage();
    const problems = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(`http://127.0.0.1:${application.address().port}/`);
    await page.addScriptTag({ path: LIBRARY });
    const channel = `news:page-${way}-${IS_PROTOBUF}`;
    const server = way === "websocket" ? ONE : stripped + (ONE.includes("?") ? ONE.slice(ONE.indexOf("?")) : "");
    await page.evaluate(
      ({ socket, fallback, emulation, way, channel, isProtobuf }) => {
        window.seen = [];
        const transports = [{ transport: "websocket", endpoint: socket }];
        if (way !== "websocket") transports.push({ transport: way, endpoint: fallback });
        window.client = new window.Centrifuge(transports, { emulationEndpoint: emulation });
        window.client.on("connected", ({ transport }) => (window.transport = transport));
        const read = (data) => (isProtobuf ? JSON.parse(new TextDecoder().decode(data)) : data);
        const subscription = window.client.newSubscription(channel);
        subscription.on("publication", ({ data }) => window.seen.push(read(data)));
        subscription.on("subscribed", () => (window.stands = true));
        subscription.subscribe();
        window.client.connect();
      },
      {
        socket: at(server.replace("http", "ws"), "/connection/websocket"),
        fallback: at(server, `/connection/${way}`),
        emulation: at(TWO, "/emulation"),
        way,
        channel,
        isProtobuf: IS_PROTOBUF,
      },
    );
    await page.waitForFunction(() => window.stands);
    assert.strictEqual(await page.evaluate(() => window.transport), way);
    await publish(TWO, channel, { way });
    await page.waitForFunction((way) => window.seen.some((data) => data.way === way), way);
    const { offset } = await page.evaluate((channel) => window.client.history(channel), channel);
    assert.strictEqual(offset, 1);
    assert.deepStrictEqual(problems, []);
    await page.close();
  }
  await browser.close();
});

kit.report();
