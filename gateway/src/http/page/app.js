// Behaviour of the first page: one subscription at a time, over WebSocket or EventSource; it comes back by
// itself and asks for what it missed.
"use strict";

const MESSAGES_MAX = 200;
const POLL_MS = 2000;
const RETRY_MS = { first: 500, most: 10000 };
const GAPS = {
  unrecoverable: "what followed the last message is no longer in history, or the gateway was restarted without a Redis",
  overflow: "more came than a queue on the way holds",
  reconnect: "the gateway had lost its Redis",
  hole: "the gateway missed some",
};

const $ = (id) => document.getElementById(id);
const view = {
  state: $("state"), channel: $("channel"), target: $("target"), curl: $("curl"), copy: $("copy"),
  messages: $("messages"), empty: $("empty"), published: $("published"), payload: $("payload"), key: $("key"),
  connections: $("connections"), subscribers: $("subscribers"), received: $("received"), where: $("where"),
};

// ---- the subscription -------------------------------------------------------------------------------------

let subscription = null;
let received = 0;

class Subscription {
  constructor(channel, transport) {
    this.channel = channel;
    this.transport = transport;
    this.position = null;
    this.attempt = 0;
    this.ended = false;
    this.open();
  }

  open() {
    if (this.ended) return;
    showState("connecting", this.attempt ? "reconnecting" : "connecting");
    const query = new URLSearchParams({ channel: this.channel });
    if (this.position) query.set("since", this.position);
    if (this.transport === "ws") this.openSocket(query);
    else this.openEvents(query);
  }

  openSocket(query) {
    query.set("envelope", "json");
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws?${query}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.opened();
    socket.onmessage = (event) => this.frame(event.data);
    socket.onclose = (event) => this.lost(event.reason || `closed (${event.code})`);
    this.close = () => { socket.onclose = null; socket.close(1000); };
  }

  openEvents(query) {
    const events = new EventSource(`/sse?${query}`);
    events.onopen = () => this.opened();
    events.onmessage = (event) => {
      if (event.lastEventId) this.position = event.lastEventId;
      showMessage({ text: event.data, position: event.lastEventId });
    };
    events.addEventListener("gap", (event) => this.gap(parse(event.data)?.gap));
    // EventSource reconnects by itself with Last-Event-ID, but not after an answer other than 200, and without
    // any growing delay; so both transports come back the same way.
    events.onerror = () => { events.close(); this.lost("stream ended"); };
    this.close = () => events.close();
  }

  frame(data) {
    const envelope = typeof data === "string" ? parse(data) : null;
    if (envelope?.gap) return this.gap(envelope.gap);
    if (!envelope) return showMessage({ text: readable(data) });
    if (envelope.epoch != null) this.position = `${envelope.epoch}:${envelope.offset}`;
    const text = "data" in envelope ? readable(envelope.data) : readable(envelope);
    showMessage({ text, event: envelope.event, position: envelope.epoch != null ? this.position : "" });
  }

  gap(gap) {
    if (gap?.epoch != null && gap.offset != null) this.position = `${gap.epoch}:${gap.offset}`;
    else this.position = null;
    const why = GAPS[gap?.reason] ?? gap?.reason ?? "gap";
    showMessage({ notice: `Messages are missing here: ${why}.`, position: this.position });
  }

  opened() {
    this.attempt = 0;
    showState("open", this.transport === "ws" ? "connected" : "streaming");
    // What failed while it was away is no news any more.
    if ("bad" in view.published.dataset) showPublished("");
    poll();
  }

  lost(reason) {
    if (this.ended) return;
    const ceiling = Math.min(RETRY_MS.most, RETRY_MS.first * 2 ** this.attempt++);
    const wait = ceiling / 2 + Math.random() * (ceiling / 2);
    this.wait(Date.now() + wait, reason);
  }

  wait(until, reason) {
    const left = until - Date.now();
    if (left <= 0) return this.open();
    showState("waiting", `offline, again in ${Math.ceil(left / 1000)} s`, reason);
    this.timer = setTimeout(() => this.wait(until, reason), left % 1000 || 1000);
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    this.close?.();
  }
}

function subscribe() {
  if (!view.channel.reportValidity()) return;
  subscription?.end();
  showTarget();
  subscription = new Subscription(view.channel.value, document.querySelector("[name=transport]:checked").value);
}

// ---- publishing -------------------------------------------------------------------------------------------

async function publish() {
  let answer;
  try {
    answer = await fetch(publishPath(view.channel.value), {
      method: "POST",
      headers: { authorization: `Bearer ${view.key.value}`, "content-type": "text/plain; charset=utf-8" },
      body: view.payload.value,
    });
  } catch {
    return showPublished("not published: the gateway does not answer", true);
  }
  const body = await answer.json().catch(() => ({}));
  const isKey = answer.status === 401 || answer.status === 403;
  view.key.setAttribute("aria-invalid", String(isKey));
  if (!answer.ok) return showPublished(`not published: ${body.detail ?? body.title ?? answer.status}`, true);
  showPublished(body.epoch == null ? "accepted" : `accepted at ${body.epoch}:${body.offset}`);
}

function showPublished(text, isBad = false) {
  view.published.toggleAttribute("data-bad", isBad);
  view.published.textContent = text;
}

function publishPath(channel) {
  return `/v1/channels/${encodeURIComponent(channel)}/publish`;
}

// ---- what is shown ----------------------------------------------------------------------------------------

function showState(state, text, title = "") {
  view.state.dataset.state = state;
  view.state.textContent = text;
  view.state.title = title;
}

// In single quotes a shell changes nothing but a single quote.
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function showTarget() {
  const channel = view.channel.value;
  view.target.textContent = channel;
  // `--data-raw` takes an @ at the beginning for one.
  const payload = quoted(view.payload.value);
  const address = `'${location.origin}${publishPath(channel)}'`;
  view.curl.textContent = `curl -H ${quoted(`authorization: Bearer ${view.key.value}`)} --data-raw ${payload} ${address}`;
}

// Text only ever enters as textContent: a message is data, never markup.
function showMessage({ text = "", notice, event, position }) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  const now = new Date();
  time.dateTime = now.toISOString();
  time.textContent = now.toLocaleTimeString([], { hour12: false });
  const place = document.createElement("span");
  place.className = "position";
  place.textContent = position || "";
  const body = document.createElement("span");
  body.className = notice ? "text notice" : "text";
  body.textContent = notice ?? (event ? `${event}: ${text}` : text);
  item.append(time, place, body);
  view.messages.prepend(item);
  while (view.messages.childElementCount > MESSAGES_MAX) view.messages.lastElementChild.remove();
  view.empty.hidden = true;
  if (!notice) view.received.textContent = String(++received);
}

async function poll() {
  try {
    const query = new URLSearchParams({ channel: subscription?.channel ?? "news" });
    const answer = await fetch(`/dev/numbers?${query}`);
    if (!answer.ok) return;
    const numbers = await answer.json();
    view.connections.textContent = numbers.connections.toLocaleString();
    view.subscribers.textContent = numbers.subscribers.toLocaleString();
    view.where.textContent = numbers.nodes > 1 ? `Connections and subscribers are those of this gateway, ${numbers.node}, one of ${numbers.nodes}.` : "";
  } catch {
    // The state line says already that the server is away.
    view.connections.textContent = view.subscribers.textContent = "–";
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function readable(data) {
  if (data instanceof ArrayBuffer) return `${data.byteLength} bytes`;
  return typeof data === "string" ? data : JSON.stringify(data);
}

async function copy() {
  const text = view.curl.textContent;
  try {
    await navigator.clipboard.writeText(text);
    view.copy.textContent = "Copied";
  } catch {
    // No clipboard outside a secure context: select it instead.
    getSelection().selectAllChildren(view.curl);
    view.copy.textContent = "Selected";
  }
  setTimeout(() => { view.copy.textContent = "Copy"; }, 1500);
}

// ---- begin ------------------------------------------------------------------------------------------------

$("subscribe").addEventListener("submit", (event) => { event.preventDefault(); subscribe(); });
$("publish").addEventListener("submit", (event) => { event.preventDefault(); publish(); });
$("copy").addEventListener("click", copy);
$("clear").addEventListener("click", () => { view.messages.replaceChildren(); view.empty.hidden = false; });
for (const choice of document.querySelectorAll("[name=transport]")) choice.addEventListener("change", subscribe);
view.channel.addEventListener("input", showTarget);
view.payload.addEventListener("input", showTarget);
view.key.addEventListener("input", () => { view.key.removeAttribute("aria-invalid"); showTarget(); });
setInterval(() => { if (!document.hidden) poll(); }, POLL_MS);
subscribe();
