// The first page in headless Chromium: both transports, messages from the page and from outside, pictures.
"use strict";

const assert = require("node:assert");
const path = require("node:path");
const { chromium } = require("playwright-core");

const GATEWAY = process.env.GATEWAY;
const VIEWPORTS = { small: { width: 320, height: 640 }, phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 800 } };

async function publish(channel, body) {
  const answer = await fetch(`${GATEWAY}/v1/channels/${channel}/publish`, {
    method: "POST",
    headers: { authorization: "Bearer dev-key" },
    body,
  });
  assert.strictEqual(answer.status, 200);
}

// One transport from the beginning: subscribe, publish on the page, see it; publish from outside, see that.
async function exercise(page, transport) {
  const channel = `page-${transport.toLowerCase()}`;
  await page.getByRole("radio", { name: transport }).check();
  await page.getByLabel("Channel", { exact: true }).fill(channel);
  await page.getByRole("button", { name: "Subscribe", exact: true }).click();
  const messages = page.locator("#messages");
  const subscribed = async () => {
    const answer = await fetch(`${GATEWAY}/v1/channels/${channel}`, { headers: { authorization: "Bearer dev-key" } });
    return answer.ok && (await answer.json()).subscribers === 1;
  };
  await until(`a subscriber of ${channel}`, subscribed);
  const own = `from the page over ${transport}`;
  await page.getByLabel(/message to/i).fill(own);
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  await messages.getByText(own).waitFor();
  const shell = await page.locator("#curl").textContent();
  assert.ok(shell.includes(`--data-raw '${own}'`), shell);
  const other = `from outside over ${transport}: <b>not markup</b>`;
  await publish(channel, other);
  await messages.getByText(other).waitFor();
  assert.strictEqual(await messages.locator("b").filter({ hasText: "not markup" }).count(), 0, "payloads are text");
}

// A wrong key is said to be one, where it was typed; with the right one all is well.
async function refuse(page) {
  const key = page.getByLabel("API key");
  await key.fill("it's wrong");
  assert.ok((await page.locator("#curl").textContent()).startsWith(`curl -H 'authorization: Bearer it'\\''s wrong' `));
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  await page.getByText("not published: the API key is not known").waitFor();
  assert.strictEqual(await key.getAttribute("aria-invalid"), "true");
  await key.fill("dev-key");
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  await page.getByText("accepted at").waitFor();
  assert.strictEqual(await key.getAttribute("aria-invalid"), "false");
}

async function until(what, condition) {
  const deadline = Date.now() + 30000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// On every viewport and scheme: nothing is wider than the screen, and touch targets are not tiny.
async function picture(page, device, scheme) {
  await page.setViewportSize(VIEWPORTS[device]);
  await page.emulateMedia({ colorScheme: scheme });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(wide <= 0, `${device}: ${wide} px wider than the screen`);
  const brightness = await page.evaluate(() => {
    const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
    return (red + green + blue) / 3;
  });
  assert.ok(scheme === "dark" ? brightness < 96 : brightness > 160, `${scheme}: background brightness ${brightness}`);
  const button = await page.getByRole("button", { name: "Publish", exact: true }).boundingBox();
  assert.ok(button.height >= 36, `${device}: button of ${button.height} px`);
  await page.screenshot({ path: path.join(process.env.PICTURES, `page-${device}-${scheme}.png`), fullPage: true });
}

async function main() {
  // The tests run as root in CI, where Chromium's own sandbox cannot.
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
  const page = await browser.newPage({ viewport: VIEWPORTS.phone });
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  // Chromium writes a line for each answer of 4xx; that to the wrong key is asked for.
  page.on("console", (message) => message.type() === "error" && !message.text().includes("401") && problems.push(message.text()));
  page.on("request", (request) => {
    const origin = new URL(request.url()).origin;
    if (origin !== GATEWAY && !request.url().startsWith("data:")) problems.push(`foreign request: ${request.url()}`);
  });
  const answer = await page.goto(GATEWAY, { waitUntil: "load" });
  assert.ok(answer.headers()["content-security-policy"], "the page has a content security policy");
  await exercise(page, "WebSocket");
  await exercise(page, "EventSource");
  await refuse(page);
  for (const device of Object.keys(VIEWPORTS)) {
    for (const scheme of ["light", "dark"]) await picture(page, device, scheme);
  }
  await browser.close();
  assert.deepStrictEqual(problems, []);
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
