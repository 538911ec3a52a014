// What the guides have a person type, as it stands: proxies before a gateway, publishing, the configuration of a node.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Tidegate } from "../dist/index.js";
import { Site, binary, blocks, eventually, freePort, publish, root } from "./site.mjs";

const directory = mkdtempSync(join(tmpdir(), "tidegate-guides-"));
const here = new Site();
after(async () => {
  await here.end();
  rmSync(directory, { recursive: true });
});

const guide = (name) => blocks(readFileSync(`${root}/docs/guides/${name}.md`, "utf8"));
const only = (name, wanted) => {
  const found = guide(name).filter(wanted);
  assert.equal(found.length, 1, `docs/guides/${name}.md has ${found.length} such blocks`);
  return found[0].body;
};
const file = (name, text) => {
  writeFileSync(join(directory, name), text);
  return join(directory, name);
};

/** The text with each of these replaced, all of which are in it: ports, and what only a machine of its own may have. */
function changed(text, changes) {
  for (const [from, to] of Object.entries(changes)) {
    assert.ok(text.includes(from), `${from} is not in:\n${text}`);
    text = text.replaceAll(from, to);
  }
  return text;
}

/** How a proxy is started with the configuration of the guide, before `upstream`, on `port`. */
const PROXIES = {
  nginx: {
    block: ({ language }) => language === "nginx",
    changes: (upstream, port) => ({ "127.0.0.1:8080": upstream, "listen 80;": `listen 127.0.0.1:${port};` }),
    start(body) {
      const place = join(directory, "nginx");
      mkdirSync(place);
      const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((kind) => `${kind}_temp_path ${place}/${kind};`);
      const around = `daemon off; master_process off; pid ${place}/pid; events { worker_connections 64; }`;
      const conf = file("nginx.conf", `${around} http { access_log off; ${paths.join(" ")}\n${body}\n}`);
      return ["nginx", "-c", conf, "-e", "stderr"];
    },
  },
  HAProxy: {
    block: ({ body }) => body.includes("option httpchk"),
    changes: (upstream, port) => ({ "127.0.0.1:8080": upstream, "bind :80": `bind 127.0.0.1:${port}` }),
    start: (body) => ["haproxy", "-db", "-f", file("haproxy.cfg", body)],
  },
  Caddy: {
    block: ({ body }) => body.includes("reverse_proxy"),
    changes: (upstream, port) => ({ "127.0.0.1:8080": upstream, "gate.example.org": `http://127.0.0.1:${port}` }),
    start: (body) => {
      const own = "{\n  admin off\n  auto_https off\n}\n";
      return ["caddy", "run", "--adapter", "caddyfile", "--config", file("Caddyfile", own + body)];
    },
  },
};

for (const [name, { block, changes, start }] of Object.entries(PROXIES)) {
  test(`${name} as in the guide passes both transports on`, async () => {
    const port = await freePort();
    const config = file(`${name}.toml`, 'trusted_proxies = ["127.0.0.0/8"]\n');
    const gateway = await here.gateway("--config", config);
    const upstream = gateway.url.slice("http://".length);
    const [program, ...words] = start(changed(only("proxies", block), changes(upstream, port)));
    here.run(program, words, { HOME: directory, XDG_DATA_HOME: directory, XDG_CONFIG_HOME: directory });
    const url = `http://127.0.0.1:${port}`;
    await eventually(`${name} answers for the gateway`, () =>
      fetch(`${url}/readyz`).then(({ status }) => status === 200, () => false));
    for (const transport of ["websocket", "sse"]) {
      const client = new Tidegate(url, { transport });
      const got = [];
      const subscription = client.subscribe(`news-${transport}`, ({ data }) => got.push(data));
      await eventually("it stands somewhere", () => subscription.position);
      await publish(url, `news-${transport}`, "1");
      // Where the answer is kept back until a buffer is full, this never comes.
      await eventually(`a message comes over ${transport}`, () => got.length === 1);
      client.close();
    }
    const doctor = execFileSync(binary, ["doctor", "--url", url, "--channel", "news"], { encoding: "utf8" });
    assert.match(doctor, /ok +upgrade/);
  });
}

test("curl and Python of the guide publish", async () => {
  const { url } = await here.gateway();
  const body = (language) => only("publish", (block) => block.language === language);
  const environment = { ...process.env, KEY: "dev-key", TIDEGATE: url };
  const told = execFileSync("sh", ["-ec", body("sh")], { env: environment, encoding: "utf8" });
  assert.match(told, /"offset":1/);
  const key = file("key", "dev-key\n");
  const script = changed(body("python"), { "https://gate.example.org": url, "/run/secrets/tidegate-key": key });
  const python = { ...environment, PYTHONPATH: `${root}/clients/python`, PYTHONDONTWRITEBYTECODE: "1" };
  execFileSync("python3", ["-c", script], { env: python });
  const answer = await fetch(`${url}/v1/channels/room:42/history`, { headers: { authorization: "Bearer dev-key" } });
  const { publications } = await answer.json();
  assert.deepEqual(publications.map(({ data }) => JSON.parse(data)), [{ text: "hello" }, { text: "hello" }]);
});

test("the configuration of a node among ten is good, and routers and gateways meet in Redis", async () => {
  const redis = await here.redis();
  const password = file("redis-password", "none\n");
  const text = only("ten-nodes", ({ language }) => language === "toml");
  const node = file("node.toml", changed(text, { "/run/secrets/redis-password": password }));
  const said = execFileSync(binary, ["gateway", "--config", node, "--check"], { encoding: "utf8" });
  assert.equal(said, "the configuration is good\n");
  await here.gateway("--backplane", redis);
  const [line] = guide("ten-nodes").filter(({ body }) => body.startsWith("tidegate router"));
  const words = changed(line.body.trim(), { "redis://redis.internal:6379": redis, "0.0.0.0:8080": "127.0.0.1:0" }).split(" ");
  const router = await here.start([...words.slice(1), "--internal", "127.0.0.1:0"], binary);
  const publishes = () => publish(router.url, "news", "x").then(() => true, () => false);
  await eventually("the router has found the gateway", publishes);
});
