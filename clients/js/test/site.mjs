// Real processes for the tests: Redis, gateways, a router, each on a free port.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = join(dirname(fileURLToPath(import.meta.url)), "../../..");
const candidates = [process.env.TIDEGATE_BIN, `${root}/target/debug/tidegate`, `${root}/target/release/tidegate`];
export const binary = candidates.find((path) => path && existsSync(path));
if (!binary) throw new Error("there is no tidegate binary: cargo build, or set TIDEGATE_BIN");

/** A port that was free a moment ago. */
export const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

/** Waits for a condition, with a deadline. */
export async function eventually(what, condition, deadline = 30_000) {
  for (const until = Date.now() + deadline; Date.now() < until; ) {
    const value = await condition();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`not in time: ${what}`);
}

/** The fenced blocks of a page: what stands after the language is a file's name, `>>` appends, `&` keeps running. */
export function blocks(text) {
  const found = text.matchAll(/^```(\w+)(?: (\S+))?\n([\s\S]*?)^```$/gm);
  return [...found].map(([, language, place, body]) => ({ language, place, body }));
}

export class Site {
  children = [];

  /** Starts a program and waits for its line that says where it listens. */
  async start(arguments_, program = binary, line = /^listening public=(\S+) internal=(\S+)/m, options = {}) {
    const environment = { ...process.env };
    delete environment.TIDEGATE_BIN;
    const child = spawn(program, arguments_, { env: environment, stdio: ["ignore", "pipe", "pipe"], ...options });
    this.children.push(child);
    let text = "";
    child.stdout.on("data", (data) => (text += data));
    child.stderr.on("data", (data) => (text += data));
    child.ended = new Promise((resolve) => child.on("exit", (code, signal) => resolve({ code, signal })));
    let exit;
    child.ended.then((how) => (exit = how));
    const found = await eventually(`${program} listens`, () => {
      if (exit) throw new Error(`${program} ended: ${text}`);
      return line.exec(text);
    });
    return Object.assign(child, { url: found[1], internal: found[2], text: () => text });
  }

  /** Starts a program that does not say when it is ready. */
  run(program, arguments_, environment) {
    const child = spawn(program, arguments_, { env: { ...process.env, ...environment }, stdio: "ignore" });
    child.ended = new Promise((resolve) => child.on("exit", resolve).on("error", resolve));
    this.children.push(child);
  }

  async redis() {
    const port = await freePort();
    const options = ["--port", `${port}`, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    await this.start(options, "redis-server", /Ready to accept connections/);
    return `redis://127.0.0.1:${port}`;
  }

  gateway(...more) {
    return this.start(["gateway", "--dev", "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", ...more]);
  }

  router(...more) {
    return this.start(["router", "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", ...more]);
  }

  async end() {
    for (const child of this.children) child.kill("SIGKILL");
    await Promise.all(this.children.map((child) => child.ended));
  }
}

export async function publish(url, channel, data) {
  const headers = { authorization: "Bearer dev-key" };
  const answer = await fetch(`${url}/v1/channels/${channel}/publish`, { method: "POST", headers, body: data });
  if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`);
  return answer.json();
}
