// pusher-js and an application that gateways ask: who connects, subscribes to a public channel, and sends client events.
"use strict";

const Pusher = require("pusher-js");
const { APP, assert, check, client, location, of, report, subscribe, until, watch } = require("./kit.cjs");

const [A, B, CLOSED] = process.env.GATEWAYS.split(",");

check("who is let in uses the channels that the application allows", async () => {
  const [one, other] = [await client(A), await client(B)];
  await subscribe(one, "news");
  const no = watch(one.subscribe("members"));
  await until("the refusal", () => of(no, "pusher:subscription_error").length === 1);
  const [{ type, error, status }] = of(no, "pusher:subscription_error");
  assert.deepStrictEqual({ type, error, status }, { type: "AuthError", error: "members only", status: 401 });
  const [onOne, onOther] = [await subscribe(one, "private-room"), await subscribe(other, "private-room")];
  const errors = [];
  one.connection.bind("error", ({ data }) => data && errors.push(data.message));
  for (const text of ["spam", "rude", "hello"]) onOne.trigger("client-say", { text });
  await until("what is allowed", () => of(onOther, "client-say").length === 2);
  assert.deepStrictEqual(of(onOther, "client-say"), [{ text: "polite" }, { text: "hello" }]);
  assert.deepStrictEqual(errors, ["no spam"]);
  assert.strictEqual(one.connection.state, "connected");
  one.unsubscribe("news");
});

check("who is refused is told why, and does not come back", async () => {
  const refused = new Pusher(APP.key, location(CLOSED));
  const errors = [];
  refused.connection.bind("error", ({ data, error }) => errors.push((data ?? error.data).message));
  await until("it has given up", () => refused.connection.state === "disconnected");
  assert.ok(errors.includes("not on the list"), `${errors}`);
});

report();
