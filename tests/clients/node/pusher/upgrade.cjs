// pusher-js on a gateway that is replaced again and again while numbers are published and clients send them to each other:
// nobody is closed, nothing is missed, doubled or out of order, and nobody is told that somebody came or went.
"use strict";

const { assert, check, client, events, of, report, server, subscribe, until } = require("./kit.cjs");

const GATEWAY = process.env.GATEWAYS;
const ROUNDS = 3;
const AT_LEAST = 20;

const say = (what) => console.log(JSON.stringify(what));
const numbers = (count) => Array.from({ length: count }, (_, number) => number);

check("clients stay while the gateway is replaced", async () => {
  const bob = await client(GATEWAY, { presence: { user_id: "bob" }, user: { id: "bob" } });
  const watched = [];
  const user = { id: "ada", watchlist: ["bob"] };
  const ada = await client(GATEWAY, { presence: { user_id: "ada", user_info: { name: "Ada" } }, user });
  const both = [ada, bob];
  for (const name of ["online", "offline"]) {
    ada.user.watchlist.bind(name, ({ user_ids }) => watched.push(...user_ids.map((id) => `${id} ${name}`)));
  }
  for (const pusher of [bob, ada]) {
    pusher.signin();
    await pusher.user.signinDonePromise;
    await until("the user's channel", () => pusher.user.serverToUserChannel.subscribed);
  }
  await until("bob is seen", () => watched.length === 1);
  const told = await Promise.all(both.map((pusher) => subscribe(pusher, "private-news")));
  const cached = await Promise.all(both.map((pusher) => subscribe(pusher, "cache-last")));
  const signs = await subscribe(ada, "signs");
  const [room, bobsRoom] = [await subscribe(ada, "presence-room"), await subscribe(bob, "presence-room")];
  await until("bob has come", () => room.members.count === 2);
  const heard = [];
  bobsRoom.bind("client-number", (number, { user_id }) => heard.push([number, user_id]));
  const sockets = both.map((pusher) => pusher.connection.socket_id);
  const states = [];
  for (const pusher of both) pusher.connection.bind("state_change", ({ current }) => states.push(current));
  room.seen.length = bobsRoom.seen.length = 0;

  let sent = 0;
  const sender = setInterval(() => room.trigger("client-number", sent++), 5);
  const more = async (what, list) => {
    const wanted = list().length + AT_LEAST;
    await until(`more ${what}`, () => list().length >= wanted);
  };
  const moreOfBoth = async () => {
    await more("numbers", () => of(told[0], "message"));
    await more("numbers of ada", () => heard);
  };
  say({ begun: true });
  for (let round = 1; round <= ROUNDS; round++) {
    await moreOfBoth();
    say({ upgrade: round });
    await until("it was replaced", () => of(signs, "message").length === round);
    await moreOfBoth();
  }
  clearInterval(sender);
  say({ end: true });
  await until("the last", () => of(signs, "message").length > ROUNDS);
  const total = of(signs, "message")[ROUNDS];
  for (const channel of [...told, ...cached]) {
    await until("all numbers", () => of(channel, "message").length >= total);
    assert.deepStrictEqual(of(channel, "message"), numbers(total));
  }
  await until("all of ada's", () => heard.length >= sent);
  assert.deepStrictEqual(heard, numbers(sent).map((number) => [number, "ada"]));
  assert.deepStrictEqual(of(room, "client-number"), [], "ada is not told her own");
  assert.deepStrictEqual(states, []);
  assert.deepStrictEqual(both.map((pusher) => pusher.connection.socket_id), sockets);

  // Who is there is who was there, and is told of only when that changes.
  const signer = server(GATEWAY);
  const get = async (path, params) => (await signer.get({ path, params })).json();
  const { users } = await get("/channels/presence-room/users");
  assert.deepStrictEqual(users.map(({ id }) => id).sort(), ["ada", "bob"]);
  const counted = await get("/channels/private-news", { info: "subscription_count" });
  assert.deepStrictEqual(counted, { occupied: true, subscription_count: 2 });
  for (const channel of [room, bobsRoom]) {
    assert.deepStrictEqual(channel.seen.filter(([event]) => event.startsWith("pusher:member")), []);
  }
  assert.deepStrictEqual(watched, ["bob online"]);

  // All that they could do, they can: the socket id signs, names who is left out, and the user has his own events.
  const later = await subscribe(ada, "private-later");
  await signer.trigger(["private-later", "private-news"], "but-for-ada", {}, { socket_id: sockets[0] });
  await signer.trigger("private-later", "for-all", {});
  await until("the event", () => events(later).length > 0);
  assert.deepStrictEqual(events(later), [["for-all", {}]]);
  const letters = [];
  ada.user.bind("letter", (data) => letters.push(data));
  await signer.sendToUser("ada", "letter", { stamp: true });
  await until("the letter", () => letters.length === 1);
  const last = await subscribe(await client(GATEWAY), "cache-last");
  await until("the last number", () => of(last, "message").length === 1);
  assert.deepStrictEqual(of(last, "message"), [total - 1]);
  bob.disconnect();
  await until("bob has left", () => room.members.count === 1 && watched.length === 2);
  assert.deepStrictEqual(of(room, "pusher:member_removed").map(({ id }) => id), ["bob"]);
  assert.deepStrictEqual(watched, ["bob online", "bob offline"]);
});

report();
