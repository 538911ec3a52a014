// The signed HTTP API when it is asked wrongly, and its exact answers when it is asked rightly.
"use strict";

const crypto = require("node:crypto");
const { assert, check, report, server } = require("./kit.cjs");

const [A] = process.env.GATEWAYS.split(",");
const good = server(A);

// A request that is signed by the SDK and may be changed afterwards.
async function ask({ signer = good, method = "POST", path = "/apps/1/events", params = {}, body, sent = body, change = (query) => query }) {
  const text = body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body);
  const query = change(signer.createSignedQueryString({ method, path, params, body: text }));
  const content = sent === body ? text : sent;
  const answer = await fetch(`${A}${path}?${query}`, {
    method,
    headers: { "content-type": "application/json" },
    body: content,
  });
  return { status: answer.status, text: await answer.text(), type: answer.headers.get("content-type") };
}

const event = { name: "e", channels: ["c"], data: "d" };

// Signs as the SDK does, but at another time.
function signedAt(seconds, body) {
  const md5 = crypto.createHash("md5").update(body).digest("hex");
  const query = `auth_key=dev-key&auth_timestamp=${seconds}&auth_version=1.0&body_md5=${md5}`;
  const signature = crypto.createHmac("sha256", "dev-secret").update(`POST\n/apps/1/events\n${query}`).digest("hex");
  return `${query}&auth_signature=${signature}`;
}

check("a right request is answered with exactly {}", async () => {
  assert.deepStrictEqual(await ask({ body: event }), { status: 200, text: "{}", type: "application/json" });
  const batch = { batch: [{ name: "e", channel: "c", data: "d" }] };
  assert.strictEqual((await ask({ path: "/apps/1/batch_events", body: batch })).text, "{}");
  // The trigger that old libraries use: event and exclusion in the query, the data as the body.
  const old = await ask({ path: "/apps/1/channels/c/events", params: { name: "e" }, body: '{"n":1}' });
  assert.ok(old.status === 200 || old.status === 202, JSON.stringify(old));
});

check("401: who signs wrongly, too early or too late, for another body or for no app", async () => {
  const body = JSON.stringify(event);
  const now = Math.floor(Date.now() / 1000);
  const cases = {
    "another secret": await ask({ signer: server(A, { secret: "other" }), body: event }),
    "another key": await ask({ signer: server(A, { key: "other" }), body: event }),
    "no such app": await ask({ path: "/apps/4711/events", body: event }),
    "another body": await ask({ body: event, sent: body.replace('"d"', '"D"') }),
    "no signature": await ask({ body: event, change: (query) => query.replace(/&?auth_signature=[^&]*/, "") }),
    "a short signature": await ask({ body: event, change: (query) => query.replace(/(auth_signature=....)[^&]*/, "$1") }),
    "no query": await ask({ body: event, change: () => "" }),
    "another parameter": await ask({ body: event, change: (query) => `${query}&info=user_count` }),
    "a stale timestamp": await ask({ body: event, change: () => signedAt(now - 700, body) }),
    "a timestamp to come": await ask({ body: event, change: () => signedAt(now + 700, body) }),
    "a timestamp that is none": await ask({ body: event, change: () => signedAt("soon", body) }),
  };
  for (const [name, answer] of Object.entries(cases)) {
    assert.strictEqual(answer.status, 401, `${name}: ${JSON.stringify(answer)}`);
    assert.ok(answer.text.length > 0, name);
  }
  // And the signature that this script makes is right when the time is.
  assert.strictEqual((await ask({ body: event, change: () => signedAt(now - 500, body) })).status, 200);
});

check("400 and 413: what is too long, too many, or not what the API takes", async () => {
  const long = (length) => "x".repeat(length);
  const many = (count) => Array.from({ length: count }, (_, n) => `c${n}`);
  const cases = [
    [400, "no JSON", { body: "{" }],
    [400, "no name", { body: { channels: ["c"], data: "d" } }],
    [400, "no channel", { body: { name: "e", data: "d" } }],
    [400, "101 channels", { body: { ...event, channels: many(101) } }],
    [200, "100 channels", { body: { ...event, channels: many(100) } }],
    [400, "a name of 201", { body: { ...event, name: long(201) } }],
    [200, "a name of 200", { body: { ...event, name: long(200) } }],
    [400, "a channel of 201", { body: { ...event, channels: [long(201)] } }],
    [400, "a channel with a space", { body: { ...event, channels: ["a b"] } }],
    [400, "a channel of an app", { body: { ...event, channels: ["2!c"] } }],
    [400, "a socket that is none", { body: { ...event, socket_id: "somebody" } }],
    [413, "data of 10241", { body: { ...event, data: long(10241) } }],
    [200, "data of 10240", { body: { ...event, data: long(10240) } }],
    [400, "11 in a batch", { path: "/apps/1/batch_events", body: { batch: many(11).map((channel) => ({ name: "e", data: "d", channel })) } }],
    [200, "10 in a batch", { path: "/apps/1/batch_events", body: { batch: many(10).map((channel) => ({ name: "e", data: "d", channel })) } }],
    [400, "users of a channel without any", { method: "GET", path: "/apps/1/channels/public/users" }],
    [400, "user_count of a public channel", { method: "GET", path: "/apps/1/channels/public", params: { info: "user_count" } }],
    [400, "user_count of all channels", { method: "GET", path: "/apps/1/channels", params: { info: "user_count" } }],
    [404, "no such endpoint", { method: "GET", path: "/apps/1/nothing" }],
  ];
  for (const [status, name, request] of cases) {
    const answer = await ask(request);
    assert.strictEqual(answer.status, status, `${name}: ${JSON.stringify(answer)}`);
  }
});

check("the SDK's error carries status and body", async () => {
  const wrong = server(A, { secret: "other" });
  const error = await wrong.trigger("c", "e", "d").then(() => assert.fail("it was taken"), (problem) => problem);
  assert.strictEqual(error.name, "PusherRequestError");
  assert.strictEqual(error.status, 401);
  assert.ok(error.body.length > 0);
});

report();
