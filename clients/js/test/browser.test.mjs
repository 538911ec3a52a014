// The same client in Chromium: it loads the ES module from a page of another origin.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, test } from "node:test";
import { Site, publish } from "./site.mjs";

const here = new Site();
after(() => here.end());

const page = (gate) => `<!doctype html><title>waiting</title><script type="module">
import { Tidegate } from "/index.js";
const gate = new Tidegate("${gate}", { backoff: { min: 50, max: 500 } });
const got = [];
let transport;
gate.on("open", (how) => { transport = how; fetch("/open", { method: "POST" }); });
for (const channel of ["a", "b"]) {
  gate.subscribe(channel, ({ data }) => {
    got.push(channel + "=" + data);
    if (got.length === 2) fetch("/done", { method: "POST", body: JSON.stringify({ transport, got: got.sort() }) });
  });
}
</script>`;

test("a page gets what is published, whatever gets through", async () => {
  const gateway = await here.gateway();
  let opened, done;
  const isOpen = new Promise((resolve) => (opened = resolve));
  const isDone = new Promise((resolve) => (done = resolve));
  const server = createServer(async (request, response) => {
    const body = (await request.toArray()).join("");
    if (request.url === "/open") opened();
    if (request.url === "/done") done(JSON.parse(body));
    const isModule = request.url === "/index.js";
    response.setHeader("content-type", isModule ? "text/javascript" : "text/html");
    response.end(isModule ? readFileSync(new URL("../dist/index.js", import.meta.url)) : page(gateway.url));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"];
  const browser = execFile("chromium", [...options, `http://127.0.0.1:${server.address().port}/`]);
  try {
    await isOpen;
    await publish(gateway.url, "a", "1");
    await publish(gateway.url, "b", "2");
    const { got, transport } = await isDone;
    assert.deepEqual(got, ["a=1", "b=2"]);
    console.log(`over ${transport}`);
  } finally {
    browser.kill("SIGKILL");
    server.close();
    server.closeAllConnections();
  }
});
