// Laravel Echo 2 over pusher-js, with the broadcasters `pusher` and `reverb`, as a Laravel front end uses it.
"use strict";

const path = require("node:path");
const { pathToFileURL } = require("node:url");
const PusherClient = require("pusher-js");
const { APP, assert, authorization, check, count, location, report, server, until } = require("./kit.cjs");

const [A, B] = process.env.GATEWAYS.split(",");
const laravel = server(B);

let Echo;

// Node takes the package's CommonJS file for a module, as its type says; the module is what bundlers take.
async function load() {
  const file = path.join(process.env.NODE_PATH, "laravel-echo/dist/echo.js");
  Echo = (await import(pathToFileURL(file))).default;
  count(Echo.prototype, "Echo.", ["channel", "private", "encryptedPrivate", "join", "leave", "socketId", "disconnect"]);
}

function echo(broadcaster, presence) {
  const options = { ...location(A), ...authorization(laravel, { presence }) };
  // Reverb's broadcaster is pusher-js with other defaults; a Laravel project has exactly these settings.
  return new Echo({ broadcaster, key: APP.key, Pusher: PusherClient, ...options, authEndpoint: undefined });
}

function checkAll(broadcaster) {
  check(`echo (${broadcaster}): channel, private, encryptedPrivate, toOthers`, async () => {
    const [one, two] = [echo(broadcaster), echo(broadcaster)];
    const seen = { one: [], two: [] };
    let subscribed = 0;
    for (const [name, client] of Object.entries({ one, two })) {
      const listen = (channel) =>
        channel
          .subscribed(() => (subscribed += 1))
          .listen("OrderShipped", (data) => seen[name].push(data.order))
          .listen(".renamed", (data) => seen[name].push(data.order));
      listen(client.channel(`orders-${broadcaster}`));
      listen(client.private(`orders-${broadcaster}`));
      listen(client.encryptedPrivate(`orders-${broadcaster}`));
    }
    await until("all six subscriptions", () => subscribed === 6);
    const event = "App\\Events\\OrderShipped";
    await laravel.trigger(`orders-${broadcaster}`, event, { order: 1 });
    await laravel.trigger(`private-orders-${broadcaster}`, "renamed", { order: 2 });
    await laravel.trigger(`private-encrypted-orders-${broadcaster}`, event, { order: 3 });
    // What `broadcast(...)->toOthers()` sends: Echo's socket id came in the header X-Socket-ID.
    await laravel.trigger(`orders-${broadcaster}`, event, { order: 4 }, { socket_id: one.socketId() });
    await laravel.trigger(`orders-${broadcaster}`, event, { order: 5 });
    await until("the last event", () => seen.one.includes(5) && seen.two.includes(5) && seen.two.includes(3) && seen.two.includes(2));
    await until("the others", () => seen.one.includes(3) && seen.one.includes(2));
    assert.deepStrictEqual(seen.one.sort(), [1, 2, 3, 5]);
    assert.deepStrictEqual(seen.two.sort(), [1, 2, 3, 4, 5]);
    for (const client of [one, two]) client.disconnect();
  });

  check(`echo (${broadcaster}): join, here, joining, leaving, whisper, leave`, async () => {
    const member = (id) => ({ user_id: id, user_info: { id, name: id.toUpperCase() } });
    const [one, two] = [echo(broadcaster, member("1")), echo(broadcaster, member("2"))];
    const seen = [];
    const room = `chat-${broadcaster}`;
    one
      .join(room)
      .here((users) => seen.push(`here ${users.map((user) => user.name)}`))
      .joining((user) => seen.push(`joining ${user.name}`))
      .leaving((user) => seen.push(`leaving ${user.name}`))
      .listenForWhisper("typing", (data) => seen.push(`typing ${data.name}`));
    await until("here", () => seen.length === 1);
    let inside = false;
    const other = two.join(room).here((users) => (inside = users.length === 2));
    await until("both are here", () => inside);
    other.whisper("typing", { name: "2" });
    await until("the whisper", () => seen.includes("typing 2"));
    two.leave(room);
    await until("the leave", () => seen.includes("leaving 2"));
    assert.deepStrictEqual(seen, ["here 1", "joining 2", "typing 2", "leaving 2"]);
    for (const client of [one, two]) client.disconnect();
  });
}

load().then(() => {
  for (const broadcaster of ["pusher", "reverb"]) checkAll(broadcaster);
  return report();
});
