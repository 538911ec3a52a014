// pusher-js as browsers get it, in headless Chromium: subscribe, receive, presence, client event.
"use strict";

const { once } = require("node:events");
const http = require("node:http");
const path = require("node:path");
const { chromium } = require("playwright-core");
const { APP, assert, check, client, location, of, report, server, subscribe, until } = require("./kit.cjs");

const [A, B] = process.env.GATEWAYS.split(",");
const signer = server(B);
const LIBRARY = path.join(path.dirname(require.resolve("pusher-js/package.json")), "dist/web/pusher.min.js");

check("chromium: a page with pusher-js", async () => {
  // The tests run as root in CI, where Chromium's own sandbox cannot.
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
  const page = await browser.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  // The application's own server: another origin than the gateway's, and like it on loopback, which Chromium asks for.
  const application = http.createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<!doctype html><title>app</title>"));
  application.listen(0, "127.0.0.1");
  await once(application, "listening");
  await page.goto(`http://127.0.0.1:${application.address().port}/`);
  await page.addScriptTag({ path: LIBRARY });
  await page.exposeFunction("authorize", (socket, channel) => signer.authorizeChannel(socket, channel, { user_id: "browser" }));
  await page.evaluate(
    ({ key, options }) => {
      window.seen = [];
      window.pusher = new window.Pusher(key, {
        ...options,
        channelAuthorization: {
          customHandler: ({ socketId, channelName }, callback) =>
            window.authorize(socketId, channelName).then((auth) => callback(null, auth)),
        },
      });
      window.channel = window.pusher.subscribe("presence-page");
      window.channel.bind_global((event, data) => window.seen.push([event, data]));
    },
    { key: APP.key, options: location(A) },
  );
  await page.waitForFunction(() => window.channel.subscribed);
  const other = await subscribe(await client(B, { presence: { user_id: "node" } }), "presence-page");
  assert.ok(other.members.get("browser"));
  await signer.trigger("presence-page", "hello", { to: "page" });
  await page.waitForFunction(() => window.seen.some(([event, data]) => event === "hello" && data.to === "page"));
  await page.waitForFunction(() => window.channel.members.count === 2);
  await page.evaluate(() => window.channel.trigger("client-hi", { from: "page" }));
  await until("the client event", () => of(other, "client-hi").length === 1);
  // The page goes away without a word.
  await browser.close();
  await until("the page left", () => of(other, "pusher:member_removed").length === 1);
  assert.deepStrictEqual(problems, []);
});

report();
