// What the Centrifuge scripts share: clients in both encodings, tokens, what a subscription saw, cases that report as JSON lines.
"use strict";

const assert = require("node:assert");
const { createHmac } = require("node:crypto");
const { Centrifuge } = require("centrifuge");
const { Centrifuge: ProtobufCentrifuge } = require("centrifuge/build/protobuf");
const WebSocket = require("ws");
const { DEADLINE_MS, check, ended, until } = require("../cases.cjs");

const IS_PROTOBUF = process.env.ENCODING === "protobuf";

// A token for so many seconds.
function token(claims, seconds = 600) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + seconds;
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ exp, ...claims })}`;
  return `${signed}.${createHmac("sha256", process.env.SECRET).update(signed).digest("base64url")}`;
}

// A path of a server, whose address may have a query (a router's key).
function at(address, path) {
  const [base, query] = address.split("?");
  return `${base}${path}${query ? `?${query}` : ""}`;
}

const clients = new Set();

// A client that is connecting; `seen` holds its events.
function client(address, { transports, ...options } = {}) {
  const Kind = IS_PROTOBUF ? ProtobufCentrifuge : Centrifuge;
  const made = new Kind(transports ?? at(address.replace("http", "ws"), "/connection/websocket"), {
    websocket: WebSocket,
    minReconnectDelay: 50,
    maxReconnectDelay: 500,
    ...options,
  });
  made.seen = [];
  for (const event of ["connecting", "connected", "disconnected", "error"]) {
    made.on(event, (context) => made.seen.push({ event, ...context }));
  }
  clients.add(made);
  made.connect();
  return made;
}

async function connected(address, options) {
  const made = client(address, options);
  await made.ready(DEADLINE_MS);
  return made;
}

// A subscription under way; `got` holds the data of publications, `seen` its events.
function follow(of, channel, options = {}) {
  const subscription = of.newSubscription(channel, { minResubscribeDelay: 50, maxResubscribeDelay: 500, ...options });
  subscription.seen = [];
  subscription.publications = [];
  subscription.got = [];
  for (const event of ["subscribing", "subscribed", "unsubscribed", "error"]) {
    subscription.on(event, (context) => subscription.seen.push({ event, ...context }));
  }
  subscription.on("publication", (publication) => {
    const data = decoded(publication.data);
    subscription.publications.push({ ...publication, data });
    subscription.got.push(data);
  });
  subscription.subscribe();
  return subscription;
}

async function subscribed(of, channel, options) {
  const subscription = follow(of, channel, options);
  await subscription.ready(DEADLINE_MS);
  return subscription;
}

// Protobuf clients send and get bytes.
function encoded(data) {
  return IS_PROTOBUF ? Buffer.from(JSON.stringify(data)) : data;
}

function decoded(data) {
  return IS_PROTOBUF ? JSON.parse(Buffer.from(data).toString()) : data;
}

let published = 0;

// Publishes over REST, again when the node that was asked is not there.
async function publish(address, channel, data) {
  const key = `key-${process.pid}-${published++}`;
  await until(`published ${data} to ${channel}`, async () => {
    const answer = await fetch(`${address.split("?")[0]}/v1/channels/${encodeURIComponent(channel)}/publish`, {
      method: "POST",
      headers: { authorization: "Bearer dev-key", "content-type": "application/json", "idempotency-key": key },
      body: JSON.stringify(data),
    }).catch(() => ({ ok: false }));
    return answer.ok;
  });
}

// The same to many channels, as many in a request as it may have.
async function publishToAll(address, channels, data) {
  for (let from = 0; from < channels.length; from += 100) await publishTogether(address, channels.slice(from, from + 100), data);
}

async function publishTogether(address, channels, data) {
  const key = `key-${process.pid}-${published++}`;
  await until(`published ${data} to ${channels.length} channels`, async () => {
    const answer = await fetch(`${address}/v1/publish`, {
      method: "POST",
      headers: { authorization: "Bearer dev-key", "content-type": "application/json" },
      body: JSON.stringify({ channels, data, idempotency_key: key }),
    }).catch(() => ({ ok: false }));
    return answer.ok;
  });
}

async function rejected(promise) {
  try {
    await promise;
  } catch (error) {
    return error.code;
  }
  throw new Error("it was not rejected");
}

async function report() {
  await ended();
  for (const made of clients) made.disconnect();
  process.exit();
}

module.exports = { IS_PROTOBUF, assert, at, check, client, connected, decoded, encoded, follow, publish, publishToAll, rejected, report, subscribed, token, until };
