// What the Pusher scripts share: clients and servers by their SDKs, cases that report as JSON lines, calls that are counted.
"use strict";

const assert = require("node:assert");
const PusherClient = require("pusher-js");
const PusherServer = require("pusher");
const WebSocket = require("ws");
const { check, ended, until } = require("../cases.cjs");

const APP = { appId: "1", key: "dev-key", secret: "dev-secret" };
const MASTER_KEY = Buffer.alloc(32, 7).toString("base64");

const calls = new Set();

// From now on every successful call of these methods is listed by `report`.
function count(owner, prefix, names) {
  for (const name of names) {
    const original = owner[name];
    assert.strictEqual(typeof original, "function", `${prefix}${name} is a method`);
    owner[name] = function (...words) {
      const result = original.apply(this, words);
      Promise.resolve(result).then(
        () => calls.add(prefix + name),
        () => {},
      );
      return result;
    };
  }
}

count(PusherServer.prototype, "pusher.", [
  "trigger",
  "triggerBatch",
  "sendToUser",
  "terminateUserConnections",
  "authorizeChannel",
  "authenticateUser",
  "get",
  "post",
  "webhook",
  "createSignedQueryString",
]);
count(PusherClient.prototype, "Pusher.", [
  "subscribe",
  "unsubscribe",
  "channel",
  "bind",
  "bind_global",
  "signin",
  "send_event",
  "connect",
  "disconnect",
]);

function server(gateway, options = {}) {
  const { hostname, port } = new URL(gateway);
  return new PusherServer({ ...APP, host: hostname, port, useTLS: false, encryptionMasterKeyBase64: MASTER_KEY, ...options });
}

const clients = new Set();

// A connected pusher-js. `presence` is who it is on presence channels, `user` who it signs in as.
async function client(gateway, { presence, user, options = {}, key = APP.key } = {}) {
  const pusher = new PusherClient(key, {
    ...location(gateway),
    ...authorization(server(gateway), { presence, user }),
    ...options,
  });
  clients.add(pusher);
  await until("connected", () => pusher.connection.state === "connected");
  return pusher;
}

function location(gateway) {
  const { hostname, port } = new URL(gateway);
  return { cluster: "", wsHost: hostname, wsPort: Number(port), forceTLS: false, enabledTransports: ["ws"], disableStats: true };
}

function authorization(signer, { presence, user }) {
  return {
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, callback) =>
        callback(null, signer.authorizeChannel(socketId, channelName, channelName.startsWith("presence-") ? presence : undefined)),
    },
    userAuthentication: {
      customHandler: ({ socketId }, callback) => callback(null, signer.authenticateUser(socketId, user)),
    },
  };
}

// Subscribes and waits for the answer. `channel.seen` holds what came: [event, data, metadata].
async function subscribe(pusher, name) {
  const channel = watch(pusher.subscribe(name));
  await until(`subscribed to ${name}`, () => channel.subscribed);
  return channel;
}

function watch(channel) {
  channel.seen = [];
  channel.bind_global((event, data) => channel.seen.push([event, data]));
  return channel;
}

// The events of the application that a channel saw, without those of the protocol.
function events(channel) {
  return channel.seen.filter(([event]) => !event.startsWith("pusher:"));
}

function of(channel, name) {
  return channel.seen.filter(([event]) => event === name).map(([, data]) => data);
}

// A presence member by hand: hundreds of pusher-js would be mostly pusher-js. Gives the socket and the answer it got.
function member(gateway, channel, user) {
  const signer = server(gateway);
  const socket = new WebSocket(`${gateway.replace("http", "ws")}/app/${APP.key}?protocol=7&client=hand&version=1`);
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.on("message", (text) => {
      const { event, data } = JSON.parse(text);
      if (event === "pusher:connection_established") {
        const { socket_id } = JSON.parse(data);
        const auth = signer.authorizeChannel(socket_id, channel, user);
        socket.send(JSON.stringify({ event: "pusher:subscribe", data: { channel, ...auth } }));
      } else if (event.includes(":subscription_")) {
        // From now on the socket may end as its node does.
        socket.removeAllListeners("error").on("error", () => {});
        resolve({ socket, event, data: typeof data === "string" ? JSON.parse(data) : data });
      }
    });
  });
}

// Waits for all cases, tells the calls that were made, and ends.
async function report() {
  await ended();
  for (const pusher of clients) pusher.disconnect();
  console.log(JSON.stringify({ calls: [...calls].sort() }));
  process.exit();
}

module.exports = { APP, MASTER_KEY, assert, authorization, check, client, count, events, location, member, of, report, server, subscribe, until, watch };
