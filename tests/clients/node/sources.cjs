// Event sources that have to outlive their gateway: npm `eventsource`, and those of Chromium. Says `open` when all are, and
// ends when each has heard `after`; one that has closed for good ends it with a failure.
"use strict";

const assert = require("node:assert");
const { EventSource } = require("eventsource");
const { chromium } = require("playwright-core");

const GATEWAY = process.env.GATEWAY;
// A browser opens six connections to one address at most.
const COUNT = process.env.CHROMIUM ? 5 : 100;

// Opens them; what is known of all of them. Runs in the page, too.
function open(base, count, Source) {
  const all = [];
  for (let at = 0; at < count; at += 1) {
    const source = new Source(`${base}/sse?channel=news&key=k${at}`);
    const state = { source, opened: 0, heard: new Set() };
    source.addEventListener("open", () => (state.opened += 1));
    source.addEventListener("message", (event) => state.heard.add(event.data));
    all.push(state);
  }
  const count_of = (is) => all.filter(is).length;
  return () => ({
    opened: count_of((state) => state.opened > 0),
    dead: count_of((state) => state.source.readyState === 2),
    after: count_of((state) => state.heard.has("after")),
  });
}

async function until(look, what, is) {
  for (;;) {
    const now = await look();
    assert.strictEqual(now.dead, 0, `${what}: ${JSON.stringify(now)}`);
    if (is(now)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function run(look) {
  await until(look, "opening", (now) => now.opened === COUNT);
  console.log("open");
  await until(look, "coming back", (now) => now.after === COUNT);
  console.log("ok");
}

async function main() {
  if (!process.env.CHROMIUM) return run(open(GATEWAY, COUNT, EventSource));
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  const page = await browser.newPage();
  await page.goto(GATEWAY);
  await page.evaluate(`window.look = (${open})("", ${COUNT}, EventSource)`);
  await run(() => page.evaluate("window.look()"));
  return browser.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
