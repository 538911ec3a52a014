// The console: one stream of views in, text nodes and SVG out. Names come from clients, so nothing is ever parsed as
// markup: every text goes through `textContent` or `createTextNode`.
"use strict";

const SAMPLES_MS = 15 * 60 * 1000;
const SPAN_MS_MIN = 30 * 1000;
const byId = (id) => document.getElementById(id);

// ---- elements ----

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ---- numbers ----

function count(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} G`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  if (value >= 1e5) return `${(value / 1e3).toFixed(0)} k`;
  if (value >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value.toFixed(1);
}

function bytes(value) {
  if (value >= 1 << 30) return `${(value / (1 << 30)).toFixed(1)} GiB`;
  if (value >= 1 << 20) return `${(value / (1 << 20)).toFixed(1)} MiB`;
  if (value >= 1 << 10) return `${(value / (1 << 10)).toFixed(1)} KiB`;
  return `${Math.round(value)} B`;
}

function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${value.toFixed(2)} ms` : value < 100 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

const percent = (share) => `${Math.round(share * 100)} %`;

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const words = (name) => name.replaceAll("_", " ");
const heat = (share) => (share >= 0.95 ? "hot" : share >= 0.8 ? "warm" : undefined);

// ---- tiles ----

function tile(name, value, small = "", state) {
  return element("div", { "data-state": state }, element("dt", {}, name), element("dd", {}, value, element("small", {}, small)));
}

function showTiles(view) {
  const { totals, sample, ceiling } = view;
  const share = ceiling ? ceiling.share : 0;
  byId("tiles").replaceChildren(
    tile("Fullest resource", ceiling ? percent(share) : "–", ceiling ? `${words(ceiling.resource)}, ${ceiling.node}` : "", share >= 0.95 ? "bad" : share >= 0.8 ? "warning" : undefined),
    tile("Nodes ready", `${totals.ready} of ${totals.nodes}`, "", totals.ready < totals.nodes ? "warning" : undefined),
    tile("Connections", count(totals.connections), `of ${count(totals.capacity)}`),
    tile("Subscriptions", count(totals.subscriptions), "of clients to channels"),
    tile("Deliveries a second", count(sample.deliveries), `${bytes(totals.bytes_sent)} a second`),
    tile("Publishes a second", count(sample.publishes), `${count(totals.received)} messages from clients`),
    tile("Publish to write", milliseconds(sample.p50_ms), `p50; p99 ${milliseconds(sample.p99_ms)}`),
    tile("Opened a second", count(sample.opened), `${count(sample.closed)} closed`),
    tile("Refused a second", count(sample.refused), `${count(totals.dropped)} messages dropped`, sample.refused > 0 ? "warning" : undefined),
    tile("Waiting for clients", bytes(totals.queued_bytes), "in send queues"),
    tile("Redis lag", milliseconds(totals.redis_lag_ms), totals.redis_lag_ms === null ? "no Redis" : "the largest of all nodes"),
    tile("Webhooks", bytes(totals.webhook_queue_bytes), totals.webhook_failures > 0 ? `${count(totals.webhook_failures)} retries and drops a second` : "waiting", totals.webhook_failures > 0 ? "warning" : undefined),
  );
}

// ---- plots ----

const PLOTS = [
  { title: "Connections", first: ["connections", (s) => s.connections], unit: count },
  { title: "Deliveries a second", first: ["deliveries", (s) => s.deliveries], unit: count },
  { title: "Publish to write", first: ["p50", (s) => s.p50_ms], second: ["p99", (s) => s.p99_ms], unit: milliseconds },
  { title: "Opened, closed a second", first: ["opened", (s) => s.opened], second: ["closed", (s) => s.closed], unit: count },
  { title: "Publishes a second", first: ["publishes", (s) => s.publishes], unit: count },
  { title: "Refused a second", first: ["refused", (s) => s.refused], unit: count },
];
const WIDTH = 900;
const HEIGHT = 100;

let samples = [];

function makePlots() {
  for (const plot of PLOTS) {
    plot.legend = element("span", { class: "legend" });
    plot.svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": plot.title });
    for (const y of [0.5, HEIGHT / 2, HEIGHT - 0.5]) plot.svg.append(drawn("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    plot.area = drawn("path", { class: "area" });
    plot.lines = [plot.first, plot.second].filter(Boolean).map((_, at) => drawn("path", { class: at ? "second" : "first" }));
    plot.svg.append(plot.area, ...plot.lines);
    plot.most = element("span", {}, "");
    plot.begin = element("span", {}, "");
    const axis = element("div", { class: "axis" }, plot.begin, plot.most, element("span", {}, "now"));
    byId("plots").append(element("div", { class: "plot" }, element("h3", {}, plot.title, plot.legend), plot.svg, axis));
  }
}

// Runs of points without a hole; a hole is where nobody watched, or nothing was delivered.
function runs(of, now, span, most) {
  const found = [];
  let run = [];
  let last = 0;
  for (const sample of samples) {
    const value = of(sample);
    if (value === null || value === undefined || sample.at_ms - last > 5000) {
      if (run.length) found.push(run);
      run = [];
    }
    last = sample.at_ms;
    if (value === null || value === undefined) continue;
    const x = WIDTH * (1 - (now - sample.at_ms) / span);
    run.push([x.toFixed(1), (HEIGHT - 2 - (HEIGHT - 4) * (most > 0 ? value / most : 0)).toFixed(1)]);
  }
  if (run.length) found.push(run);
  return found;
}

// A lone point is drawn as a dash, so that it is seen.
const line = (run) => (run.length === 1 ? `M${run[0].join(",")}h2` : `M${run.map((point) => point.join(",")).join("L")}`);

function showPlots() {
  const last = samples.at(-1);
  if (!last) return;
  // As long as there is something to show, up to 15 minutes.
  const width = Math.min(SAMPLES_MS, Math.max(SPAN_MS_MIN, last.at_ms - samples[0].at_ms));
  for (const plot of PLOTS) {
    const series = [plot.first, plot.second].filter(Boolean);
    let most = 0;
    for (const sample of samples) for (const [, of] of series) most = Math.max(most, of(sample) ?? 0);
    series.forEach(([, of], at) => plot.lines[at].setAttribute("d", runs(of, last.at_ms, width, most).map(line).join("")));
    const areas = runs(plot.first[1], last.at_ms, width, most).map((run) => `${line(run)}L${run.at(-1)[0]},${HEIGHT}L${run[0][0]},${HEIGHT}Z`);
    plot.area.setAttribute("d", areas.join(""));
    plot.begin.textContent = `${span(Math.round(width / 1000))} ago`;
    plot.most.textContent = `at most ${plot.unit(most)}`;
    const legend = series.flatMap(([name, of], at) => [element("i", { class: at ? "second" : "first" }), `${name} ${plot.unit(of(last))}`]);
    plot.legend.replaceChildren(...legend);
  }
}

// ---- tables ----

function fill(table, heads, rows, empty) {
  const head = element("tr", {}, ...heads.map(([name, kind]) => element("th", { class: kind, scope: "col" }, name)));
  const none = () => element("tr", {}, element("td", { class: "none", colspan: heads.length }, empty));
  byId(table).replaceChildren(element("thead", {}, head), element("tbody", {}, ...(rows.length ? rows : [none()])));
}

const cell = (kind, ...children) => element("td", { class: kind }, ...children);
const number = (text) => cell("number", text);

function loadBar(node) {
  const most = Math.max(node.capacity, 1);
  const bar = drawn("svg", { class: "bar", viewBox: "0 0 136 12", role: "img", "aria-label": `${count(node.connections)} of ${count(node.capacity)} connections` });
  const isOver = node.bound !== null && node.connections > node.bound;
  bar.append(drawn("rect", { class: "bed", width: 136, height: 12, rx: 3 }));
  bar.append(drawn("rect", { class: isOver ? "over" : "load", width: Math.min(136, (136 * node.connections) / most), height: 12, rx: 3 }));
  if (node.bound !== null) {
    const x = Math.min(134, Math.max(1, (136 * node.bound) / most));
    bar.append(drawn("line", { class: "bound", x1: x, x2: x, y1: 0, y2: 12 }));
  }
  return bar;
}

function showNodes(view) {
  const rows = view.nodes.map((node) => {
    const [resource, share] = node.saturation[0] ?? [null, 0];
    const notes = node.notes.map((note) => element("span", { class: "note" }, note));
    const isGone = node.state === "gone" || node.state === "lost";
    return element(
      "tr",
      { class: isGone ? "gone" : undefined },
      cell("name", node.name, element("span", { class: "note" }, [node.address, node.zone].filter(Boolean).join(" · "))),
      cell(undefined, element("span", { class: "mark", "data-state": node.state }, words(node.state)), ...notes),
      cell(undefined, `${count(node.connections)} of ${count(node.capacity)}`, loadBar(node)),
      cell(heat(share), resource ? `${words(resource)} ${percent(share)}` : "–"),
      number(count(node.deliveries)),
      number(count(node.publishes)),
      number(node.redis_connected ?? "–"),
      number(milliseconds(node.redis_lag_ms)),
      number(node.version),
      number(span(node.uptime_s)),
    );
  });
  const heads = [["Node"], ["State"], ["Connections"], ["Fullest"], ["Deliveries/s", "number"], ["Publishes/s", "number"], ["Redis", "number"], ["Lag", "number"], ["Version", "number"], ["Up", "number"]];
  if (view.nodes_more) rows.push(element("tr", {}, element("td", { class: "none", colspan: heads.length }, `and ${view.nodes_more} more`)));
  fill("nodes", heads, rows, "No node is in the registry.");
}

function channelRow(channel) {
  const pick = element("button", { type: "button", class: "link", title: "Look this channel up" }, channel.name);
  pick.addEventListener("click", () => {
    byId("channel").value = channel.name;
    byId("look-title").scrollIntoView();
    byId("channel").focus();
  });
  const app = channel.app === null ? null : element("span", { class: "note" }, `app ${channel.app}`);
  return element("tr", {}, cell("name", pick, app), number(count(channel.subscribers)), number(count(channel.publications)), number(count(channel.deliveries)));
}

// What a person is about to press is not taken from under the pointer or the focus.
const isHeld = (id) => byId(id).matches(":hover") || byId(id).contains(document.activeElement);

function showChannels(view) {
  const heads = [["Channel"], ["Subscribers", "number"], ["Publications/s", "number"], ["Deliveries/s", "number"]];
  if (!isHeld("by-subscribers")) fill("by-subscribers", heads, view.by_subscribers.map(channelRow), "Nobody is subscribed.");
  if (!isHeld("by-rate")) fill("by-rate", heads, view.by_rate.map(channelRow), "Nothing is published to subscribers.");
}

function showCounted(view) {
  const heads = (first) => [[first], ["Reason"], ["Last minute", "number"], ["15 minutes", "number"], ["Last on"]];
  const row = (counted) =>
    element(
      "tr",
      {},
      cell(undefined, counted.what),
      cell(undefined, words(counted.reason), counted.meaning ? element("span", { class: "note" }, counted.meaning) : null),
      number(count(counted.last_minute)),
      number(count(counted.last_quarter)),
      cell(undefined, counted.node, element("span", { class: "note" }, `${span(counted.ago_s)} ago`)),
    );
  fill("refusals", heads("What"), view.refusals.map(row), "Nothing since somebody watches.");
  fill("closes", heads("What"), view.closes.map(row), "None since somebody watches.");
}

// ---- the stream ----

function show(view) {
  const sentence = byId("sentence");
  if (sentence.textContent !== view.sentence) sentence.textContent = view.sentence;
  sentence.dataset.state = view.state;
  document.title = `${view.state === "good" ? "" : view.state === "bad" ? "✗ " : "! "}Tidegate console`;
  const { ceiling } = view;
  byId("advice").hidden = !ceiling;
  if (ceiling) byId("advice").replaceChildren(element("b", {}, words(ceiling.resource)), ` on ${ceiling.node} is the next ceiling. ${ceiling.advice}`);
  byId("served").textContent = `Served by ${view.served_by}`;
  showTiles(view);
  showPlots();
  showNodes(view);
  showChannels(view);
  showCounted(view);
}

function watch() {
  const link = byId("link");
  const stream = new EventSource("/console/events");
  let told = 0;
  stream.addEventListener("history", (event) => (samples = JSON.parse(event.data).samples));
  stream.addEventListener("view", (event) => {
    const view = JSON.parse(event.data);
    told = Date.now();
    delete link.dataset.lost;
    link.textContent = `live, ${new Date(view.at_ms).toLocaleTimeString("en-GB")}`;
    if (view.sample.at_ms !== samples.at(-1)?.at_ms) samples.push(view.sample);
    samples = samples.filter((sample) => view.at_ms - sample.at_ms < SAMPLES_MS);
    show(view);
  });
  stream.addEventListener("error", () => {
    link.dataset.lost = "";
    const since = told ? `, last ${new Date(told).toLocaleTimeString("en-GB")}` : "";
    link.textContent = `no answer from this node${since}; trying again`;
    // A node that refuses (too many watch) ends an EventSource for good.
    if (stream.readyState === EventSource.CLOSED) setTimeout(watch, 5000);
  });
}

// ---- with a key ----

class Refusal extends Error {}

async function call(path, options = {}) {
  const key = byId("key").value;
  if (!key) {
    byId("key").focus();
    throw new Refusal("Type an API key first.");
  }
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, authorization: `Bearer ${key}` } });
  } catch {
    throw new Refusal("This node does not answer.");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refusal(`${answer.status}: ${body.detail ?? body.title ?? answer.statusText}`);
  return body;
}

async function into(result, work) {
  const place = byId(result);
  place.replaceChildren(element("p", { class: "soft" }, "asking"));
  try {
    place.replaceChildren(...(await work()));
  } catch (error) {
    place.replaceChildren(element("p", { class: "wrong" }, error instanceof Refusal ? error.message : String(error)));
  }
}

const paragraph = (text) => element("p", {}, text);
const pathOf = (channel) => `/v1/channels/${encodeURIComponent(channel)}`;

function payloadOf(publication) {
  const data = publication.data ?? publication.data_base64 ?? "";
  return typeof data === "string" ? data : JSON.stringify(data);
}

async function showChannel() {
  const channel = byId("channel").value;
  const state = await call(pathOf(channel));
  const shown = [paragraph(`${count(state.subscribers)} subscribers on the node that serves this page.`)];
  const history = await call(`${pathOf(channel)}/history?limit=20`).catch((error) => error);
  if (history instanceof Error) shown.push(element("p", { class: "wrong" }, `History: ${history.message}`));
  else {
    const kept = history.publications.slice().reverse();
    shown.push(paragraph(kept.length ? "History, the newest first:" : "Nothing in history."));
    shown.push(element("ol", {}, ...kept.map((one) => element("li", {}, `${one.offset ?? ""} ${payloadOf(one)}`))));
  }
  const presence = await call(`${pathOf(channel)}/presence`).catch((error) => error);
  if (presence instanceof Error) shown.push(element("p", { class: "soft" }, `Presence: ${presence.message}`));
  else {
    shown.push(paragraph(`${count(presence.members.length)} members present:`));
    const members = presence.members.slice(0, 100).map((member) => {
      const pick = element("button", { type: "button", class: "link" }, member.connection);
      pick.addEventListener("click", () => {
        byId("connection").value = member.connection;
        byId("connection").focus();
      });
      return element("li", {}, `${member.user} `, pick);
    });
    shown.push(element("ol", {}, ...members));
  }
  return shown;
}

async function publish() {
  const channel = byId("channel").value;
  if (!channel) throw new Refusal("Name a channel first.");
  const answer = await call(`${pathOf(channel)}/publish`, {
    method: "POST",
    headers: { "content-type": "text/plain" },
    body: byId("payload").value,
  });
  return [paragraph(answer.offset === undefined ? "Published." : `Published, offset ${answer.offset}.`)];
}

async function showConnection() {
  const found = await call(`/console/connections/${encodeURIComponent(byId("connection").value)}`);
  const rows = [
    ["Who", found.user ?? "no user"],
    ["App", found.app],
    ["Node", found.node],
    ["Speaks", found.protocol],
    ["Phase", found.phase],
    ["From", found.peer],
    ["Connected", `${span(found.connected_s)} ago`],
    ["Last heard", `${span(found.quiet_s)} ago${found.is_pinged ? "; a ping waits for its pong" : ""}`],
    ["Queued", bytes(found.queued_bytes)],
    ["Subscriptions", `${found.subscriptions}: ${found.channels.join(" ")}`],
  ];
  const told = (found.told ?? []).map(({ ago_s, times, text }) =>
    element("li", {}, `${text} `, element("span", { class: "note" }, `${span(ago_s)} ago${times > 1 ? `, ${times} times` : ""}`)));
  const list = rows.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  const head = paragraph(told.length ? "Told, beside publications, the newest first:" : "Told nothing but publications, as far as this goes back.");
  return [element("dl", {}, ...list), head, element("ol", {}, ...told)];
}

async function disconnect() {
  const connection = byId("connection").value;
  if (!connection) throw new Refusal("Name a connection first.");
  await call("/v1/disconnect", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ connection, reason: "disconnected by an operator" }),
  });
  return [paragraph("The order is on its way to its node.")];
}

function onSubmit(form, result, work) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    if (work) into(result, work);
  });
}

makePlots();
onSubmit("key-form");
onSubmit("channel-form", "channel-result", showChannel);
onSubmit("connection-form", "connection-result", showConnection);
byId("publish").addEventListener("click", () => into("channel-result", publish));
byId("disconnect").addEventListener("click", () => into("connection-result", disconnect));
watch();
