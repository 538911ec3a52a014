// The console in headless Chromium: numbers of all nodes, one channel, one connection, without a mouse; pictures.
"use strict";

const assert = require("node:assert");
const path = require("node:path");
const { chromium } = require("playwright-core");

const GATEWAY = process.env.GATEWAY;
const VIEWPORTS = { desktop: { width: 1280, height: 900 }, phone: { width: 390, height: 844 } };
// Enough for plots to be more than dots.
const WATCHED_S = 15;

async function picture(page, device, scheme) {
  await page.setViewportSize(VIEWPORTS[device]);
  await page.emulateMedia({ colorScheme: scheme });
  await fits(page, device);
  await page.evaluate(() => window.scrollTo(0, 0));
  await page.screenshot({ path: path.join(process.env.PICTURES, `console-${device}-${scheme}.png`) });
}

async function fits(page, what) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(wide <= 0, `${what}: ${wide} px wider than the screen`);
}

async function exercise(page) {
  await page.getByRole("button", { name: "live:prices" }).first().click();
  assert.strictEqual(await page.getByLabel("Channel", { exact: true }).inputValue(), "live:prices");
  // Nothing happens without a key.
  await page.getByLabel("Channel", { exact: true }).fill("room:a");
  await page.keyboard.press("Enter");
  await page.getByText("Type an API key first.").waitFor();
  await page.getByRole("textbox", { name: /API key/ }).fill("wrong");
  await page.getByLabel("Channel", { exact: true }).press("Enter");
  await page.locator("#channel-result .wrong").getByText("401").waitFor();
  await page.getByRole("textbox", { name: /API key/ }).fill("dev-key");
  await page.getByLabel("Publish to it").fill("<b>not markup</b>");
  await page.getByRole("button", { name: "Publish", exact: true }).press("Enter");
  await page.locator("#channel-result").getByText("Published, offset 1.").waitFor();
  await page.getByRole("button", { name: "Show" }).press("Enter");
  const result = page.locator("#channel-result");
  await result.getByText("<b>not markup</b>").waitFor();
  assert.strictEqual(await result.locator("b").count(), 0, "payloads are text");
  await result.getByRole("button", { name: /^g2\./ }).click();
  await page.getByLabel("Connection, as presence names it").press("Enter");
  await page.locator("#connection-result").getByText("ada").waitFor();
  await page.locator("#connection-result").getByText("Told nothing but publications").waitFor();
}

async function main() {
  // The tests run as root in CI, where Chromium's own sandbox cannot.
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
  const page = await browser.newPage({ viewport: VIEWPORTS.desktop });
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  // Chromium writes a line for each answer of 4xx; that to the wrong key is asked for.
  page.on("console", (message) => message.type() === "error" && !message.text().includes("401") && problems.push(message.text()));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== GATEWAY && !request.url().startsWith("data:")) problems.push(`foreign request: ${request.url()}`);
  });
  const answer = await page.goto(`${GATEWAY}/console`, { waitUntil: "domcontentloaded" });
  assert.ok(answer.headers()["content-security-policy"], "the page has a content security policy");
  await page.getByText("All 3 nodes are ready").waitFor();
  assert.strictEqual(await page.locator("#nodes .mark[data-state=ready]").count(), 3);
  await page.waitForFunction((seconds) => samples.length >= seconds, WATCHED_S, { timeout: 60000 });
  await page.locator("#refusals").getByText("token invalid").first().waitFor();
  await page.locator("#by-rate").getByText("live:chat").waitFor();
  for (const device of Object.keys(VIEWPORTS)) {
    for (const scheme of ["light", "dark"]) await picture(page, device, scheme);
  }
  await page.setViewportSize({ width: 320, height: 640 });
  await fits(page, "320 px");
  await exercise(page);
  await browser.close();
  assert.deepStrictEqual(problems, []);
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
