// docs/guides/chat.md as it stands: its files, its commands, and the chat in two browsers.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { appendFileSync, copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { after, test } from "node:test";
import { Site, binary, blocks, eventually, freePort, root } from "./site.mjs";

const { chromium } = createRequire(`${root}/.cache/node/node_modules/`)("playwright-core");
const directory = mkdtempSync(join(tmpdir(), "tidegate-chat-"));
const here = new Site();
after(async () => {
  await here.end();
  rmSync(directory, { recursive: true });
});

test("the chat of the tutorial is one", async () => {
  // Only ports differ from what a reader has.
  const [gatePort, innerPort, appPort] = await Promise.all([freePort(), freePort(), freePort()]);
  const ported = (text) =>
    text.replaceAll("127.0.0.1:8000", `127.0.0.1:${gatePort}`).replaceAll("127.0.0.1:3000", `127.0.0.1:${appPort}`)
      .replaceAll("listen(3000", `listen(${appPort}`).replaceAll("127.0.0.1:9000", `127.0.0.1:${innerPort}`);
  copyFileSync(new URL("../dist/index.js", import.meta.url), join(directory, "tidegate.js"));
  writeFileSync(join(directory, "package.json"), '{"type":"module"}');
  const environment = { ...process.env, PATH: `${dirname(binary)}${delimiter}${process.env.PATH}` };
  delete environment.TIDEGATE_BIN;
  let gateway;
  let app;
  for (const { language, place, body } of blocks(readFileSync(`${root}/docs/guides/chat.md`, "utf8"))) {
    const text = ported(body);
    if (language === "sh" && place === "&") {
      const [program, ...words] = text.trim().split(" ");
      const line = program === "node" ? /(the chat is at) (\S+)/ : undefined;
      const options = { cwd: directory, env: environment };
      const child = await here.start(words, program === "tidegate" ? binary : program, line, options);
      if (program === "tidegate") gateway = { child, words };
      else app = child;
    } else if (language === "sh") {
      execFileSync("sh", ["-ec", text], { cwd: directory, env: environment });
      // The configuration that was written has the default ports.
      const file = join(directory, "chat/gateway.toml");
      writeFileSync(file, ported(readFileSync(file, "utf8")));
    } else if (place?.startsWith(">>")) {
      appendFileSync(join(directory, place.slice(2)), text);
    } else if (place) {
      writeFileSync(join(directory, place), text);
    }
  }
  assert.ok(gateway && app);

  const program = execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });
  try {
    const enter = async (name) => {
      const page = await (await browser.newContext()).newPage();
      await page.goto(`http://127.0.0.1:${appPort}/`);
      await page.fill("[name=name]", name);
      await page.click("#login button");
      await page.waitForFunction(() => document.getElementById("state").textContent === "connected");
      return page;
    };
    const says = (page, line) =>
      page.waitForFunction((line) => document.getElementById("messages").innerText.includes(line), line);
    const say = async (page, text) => {
      await page.fill("[name=text]", text);
      await page.click("#say button");
    };

    const ann = await enter("ann");
    await say(ann, "hello");
    await says(ann, "ann: hello");
    const bob = await enter("bob");
    await says(bob, "ann: hello");
    await bob.waitForFunction(() => document.getElementById("members").textContent === "ann, bob");
    // It is told every two seconds at most.
    await eventually("typing is seen", async () => {
      await ann.type("[name=text]", ".");
      return bob.evaluate(() => document.getElementById("typing").textContent === "ann is typing");
    });

    // What to try.
    await bob.evaluate(() => gate.publish("room:lobby", { text: "I am ann", user: "ann" }));
    await says(ann, "bob: I am ann");
    const refused = await bob.evaluate(() => gate.publish("news", "x").catch(({ code }) => code));
    assert.equal(refused, 403);
    await bob.evaluate(() => fetch("/topic", { method: "POST", body: "Tea at four" }));
    await ann.waitForFunction(() => document.getElementById("topic").textContent === "Tea at four");

    // The gateway is restarted: its history is gone, and the application's archive is not.
    const connected = (page, is) =>
      page.waitForFunction((is) => (document.getElementById("state").textContent === "connected") === is, is);
    gateway.child.kill("SIGKILL");
    await gateway.child.ended;
    for (const page of [ann, bob]) await connected(page, false);
    await here.start(gateway.words, binary, undefined, { cwd: directory, env: environment });
    for (const page of [ann, bob]) await connected(page, true);
    // The application is back as well when it tells of the hole: before, it would not hear what is said.
    await eventually("the application is back", () => app.text().includes("the archive has a hole"));
    await say(bob, "still here");
    await says(ann, "bob: still here");
    await says(ann, "ann: hello");
    const archive = await eventually("the archive has it", () =>
      ann.evaluate(async () => {
        const all = await fetch("/archive").then((answer) => answer.json());
        return all.some(({ data }) => data.text === "still here") && all;
      }));
    assert.deepEqual([archive[0].user, archive[0].data.text], ["ann", "hello"]);
  } finally {
    await browser.close();
  }
});

/** How a guide's file is run to print a token. */
const LANGUAGES = {
  "token.mjs": ["node", ["--input-type=module", "-e", "import { token } from './token.mjs'; console.log(token(...$))"]],
  "token.py": ["python3", ["-c", "from token_of_guide import token; print(token(*$))"]],
  "token.php": ["php", ["-r", "require 'token.php'; echo token(...$);"]],
  "token.go": ["go", ["run", "token.go", "main.go"]],
};

test("tokens of every language in the guide let their user in", async () => {
  const secret = "0123456789abcdef0123456789abcdef";
  const given = `["ann", ["room:*"], "${secret}"]`;
  const files = blocks(readFileSync(`${root}/docs/guides/users.md`, "utf8")).filter(({ place }) => place in LANGUAGES);
  assert.equal(files.length, 4);
  const place = join(directory, "users");
  mkdirSync(place);
  for (const file of files) writeFileSync(join(place, file.place), file.body);
  writeFileSync(join(place, "secret"), `${secret}\n`);
  // Python has a module of the name `token`.
  copyFileSync(join(place, "token.py"), join(place, "token_of_guide.py"));
  writeFileSync(
    join(place, "main.go"),
    `package main\n\nimport "fmt"\n\nfunc main() { fmt.Println(Token("ann", []string{"room:*"}, "${secret}")) }\n`,
  );
  writeFileSync(
    join(place, "gateway.toml"),
    '[[auth.jwt]]\nalgorithm = "HS256"\nsecret_file = "secret"\n[namespaces.default]\nhistory_size = 10\nhistory_age = "1m"\n',
  );
  const ports = ["--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0"];
  const gateway = await here.start(["gateway", "--config", "gateway.toml", ...ports], binary, undefined, { cwd: place });
  const status = async (token, channel) => {
    const cut = new AbortController();
    const answer = await fetch(`${gateway.url}/sse?channel=${channel}`, {
      headers: token ? { authorization: `Bearer ${token}` } : {},
      signal: cut.signal,
    });
    cut.abort();
    return answer.status;
  };
  assert.equal(await status(undefined, "room:1"), 401);
  for (const { place: name } of files) {
    const [program, words] = LANGUAGES[name];
    const token = execFileSync(program, words.map((word) => word.replace("$", given)), { cwd: place, encoding: "utf8" }).trim();
    assert.equal(await status(token, "room:1"), 200, `${name}: ${token}`);
    assert.equal(await status(token, "other"), 403, name);
  }
});

test("PHP of the guide publishes once, however often it is run", async () => {
  const [{ body }] = blocks(readFileSync(`${root}/docs/guides/publish.md`, "utf8")).filter(({ language }) => language === "php");
  const gateway = await here.gateway();
  const given = `$tidegate = "${gateway.url}"; $key = "dev-key"; $message = ["text" => "it's"]; $id = "m-1807";`;
  for (const _ of [1, 2]) {
    assert.equal(execFileSync("php", ["-r", `${given}\n${body}\necho $status;`], { encoding: "utf8" }), "200");
  }
  const answer = await fetch(`${gateway.url}/v1/channels/room:42/history`, { headers: { authorization: "Bearer dev-key" } });
  const { publications } = await answer.json();
  assert.deepEqual(publications.map(({ data }) => data), [JSON.stringify({ text: "it's" })]);
});
