// Tokens signed with node:crypto: what they open, and what they do not.
"use strict";

const assert = require("node:assert");
const { createHmac } = require("node:crypto");
const WebSocket = require("ws");

const SOCKETS = process.env.GATEWAY.replace("http", "ws");
const NOW = Math.floor(Date.now() / 1000);

function token(claims, secret = process.env.SECRET, header = { alg: "HS256", typ: "JWT" }) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part(header)}.${part(claims)}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}

// The status that an upgrade with this token gets; 101 when it opens.
function attempt(channel, text) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${SOCKETS}/ws?channel=${channel}&token=${text}`);
    socket.on("open", () => {
      socket.close();
      resolve(101);
    });
    socket.on("unexpected-response", (request, response) => {
      request.destroy();
      resolve(response.statusCode);
    });
    socket.on("error", reject);
  });
}

async function main() {
  const claims = { sub: "u1", exp: NOW + 600, channels: ["news:*"] };
  assert.strictEqual(await attempt("news:a", token(claims)), 101);
  assert.strictEqual(await attempt("weather", token(claims)), 403, "another channel");
  assert.strictEqual(await attempt("news:a", token({ ...claims, exp: NOW - 600 })), 401, "expired");
  assert.strictEqual(await attempt("news:a", token(claims, "another-secret-of-at-least-32-bytes!!")), 401, "forged");
  assert.strictEqual(await attempt("news:a", token(claims, process.env.SECRET, { alg: "none" })), 401, "alg none");
  assert.strictEqual(await attempt("news:a", "nonsense"), 401, "malformed");
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
