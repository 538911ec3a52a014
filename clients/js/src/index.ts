/** Many channels of Tidegate on one connection: a WebSocket, or an event stream where none gets through. */

/** `EPOCH:OFFSET`: where a channel stands. */
export type Position = string;

export interface Message {
  channel: string;
  data: unknown;
  event?: string;
  /** Who published it, where a client did. */
  user?: string;
  /** Absent where the channel keeps no history. */
  position?: Position;
}

export interface Gap {
  channel: string;
  /** `unrecoverable`, `overflow`, `reconnect`, `hole`. */
  reason: string;
}

/** A connection of a user in a channel. */
export interface Member {
  connection: string;
  user: string;
  /** What the user's token says of the user. */
  info?: unknown;
}

/** A member that came or went; `connections`: how many its user has in the channel now, 0 when the user is gone. */
export interface Change extends Member {
  connections: number;
}

export interface SubscribeOptions {
  since?: Position;
  /** Be told who is in the channel, who joins and who leaves: the events `members`, `join`, `leave`. */
  joinLeave?: boolean;
}

/** Why the connection ended, and what happens next. */
export interface Closed {
  code: number;
  reason: string;
  explanation: string;
  /** Milliseconds until the next attempt; absent where there is none. */
  retryIn?: number;
}

export interface Options {
  /** A token, or what gives one: it is asked before every connection and before the last one expires. */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /** `auto` (the default) takes event streams when a WebSocket never opened twice in a row. */
  transport?: "auto" | "websocket" | "sse";
  /** Waits between attempts, in milliseconds; each is a random part of a bound that doubles. */
  backoff?: { min?: number; max?: number };
  /** Milliseconds until a command without an answer fails. */
  timeout?: number;
  WebSocket?: typeof WebSocket;
  fetch?: typeof fetch;
}

export class TidegateError extends Error {
  constructor(readonly code: number, message: string) {
    super(message);
    this.name = "TidegateError";
  }
}

/** What a close code means (docs/protocols.md), and whether a client should come back. */
const CODES: Record<number, [string, boolean]> = {
  1000: ["closed", true],
  1002: ["the client broke the WebSocket protocol", false],
  1006: ["the connection was lost, or refused before it opened", true],
  1007: ["a message was not valid UTF-8", false],
  1008: ["the client did what it may not do", false],
  1009: ["a message was too large", false],
  1012: ["the server restarts", true],
  4401: ["the token has expired", true],
  4403: ["the application disconnected this client", false],
};

type Handler<T> = (value: T) => void;

class Emitter<Events> {
  private handlers: { [K in keyof Events]?: Handler<Events[K]>[] } = {};

  /** Calls `handler` at each such event; what is returned takes it away again. */
  on<K extends keyof Events>(event: K, handler: Handler<Events[K]>): () => void {
    (this.handlers[event] ??= []).push(handler);
    return () => {
      this.handlers[event] = this.handlers[event]?.filter((other) => other !== handler);
    };
  }

  /** @internal */
  emit<K extends keyof Events>(event: K, value: Events[K]): void {
    for (const handler of this.handlers[event] ?? []) handler(value);
  }
}

export class Subscription extends Emitter<{
  subscribed: { recovered: boolean };
  message: Message;
  gap: Gap;
  /** Who is there, at first and after each new connection; `count` may be more than are named. */
  members: { members: Member[]; count: number };
  join: Change;
  leave: Change;
  /** So many messages were left out because this client read too slowly. */
  dropped: number;
  error: TidegateError;
}> {
  /** After the last message; a new connection goes on from here. */
  position?: Position;
  /** @internal */
  up = false;
  /** @internal */
  joinLeave?: boolean;

  constructor(private client: Tidegate, readonly channel: string, options: SubscribeOptions) {
    super();
    this.position = options.since;
    this.joinLeave = options.joinLeave;
  }

  unsubscribe(): void {
    this.client.remove(this);
  }
}

interface Pending {
  resolve: (value: any) => void;
  reject: (error: TidegateError) => void;
  timer: ReturnType<typeof setTimeout>;
}

export class Tidegate extends Emitter<{ open: "websocket" | "sse"; close: Closed; error: TidegateError }> {
  private subscriptions = new Map<string, Subscription>();
  private pending = new Map<number, Pending>();
  private socket?: WebSocket;
  private stream?: AbortController;
  private timer?: ReturnType<typeof setTimeout>;
  private renewal?: ReturnType<typeof setTimeout>;
  private nextId = 1;
  private attempts = 0;
  private neverOpened = 0;
  private ended = false;
  private starting = false;
  private token?: string;

  /** `url`: the deployment's public address, such as `https://gate.example.org`. */
  constructor(private url: string, private options: Options = {}) {
    super();
    this.url = url.replace(/\/+$/, "").replace(/^ws/, "http");
  }

  /** The subscription to a channel; there is one for each. Connects if need be. */
  subscribe(channel: string, onMessage?: Handler<Message>, since?: Position | SubscribeOptions): Subscription {
    let subscription = this.subscriptions.get(channel);
    if (!subscription) {
      subscription = new Subscription(this, channel, typeof since === "string" ? { since } : since ?? {});
      this.subscriptions.set(channel, subscription);
      if (this.isOpen()) this.join(subscription);
      // A wait between attempts is kept.
      else if (this.stream || !(this.socket || this.timer)) this.wake();
    }
    if (onMessage) subscription.on("message", onMessage);
    return subscription;
  }

  /** Resolves with the position once the server has it. */
  async publish(channel: string, data: unknown, event?: string): Promise<Position | undefined> {
    return at(await this.command({ publish: { channel, data, event } }));
  }

  /** Who is in the channel. */
  presence(channel: string): Promise<any> {
    return this.command({ presence: channel });
  }

  /** The last messages of the channel. */
  history(channel: string, limit?: number, since?: Position): Promise<any> {
    return this.command({ history: { channel, limit, since } });
  }

  /** Ends for good. */
  close(): void {
    this.ended = true;
    clearTimeout(this.timer);
    clearTimeout(this.renewal);
    this.fail(new TidegateError(1000, "the client was closed"));
    this.socket?.close(1000);
    this.stream?.abort();
  }

  /** @internal */
  remove(subscription: Subscription): void {
    if (!this.subscriptions.delete(subscription.channel)) return;
    if (this.isOpen()) this.command({ unsubscribe: subscription.channel }).catch(() => {});
    else if (this.stream) this.wake();
  }

  private isOpen(): boolean {
    return this.socket?.readyState === 1;
  }

  private command(command: object): Promise<any> {
    if (!this.isOpen()) {
      const why = this.stream ? "an event stream takes no commands" : "not connected";
      return Promise.reject(new TidegateError(503, why));
    }
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      const late = () => this.settle(id)?.reject(new TidegateError(504, "no answer in time"));
      this.pending.set(id, { resolve, reject, timer: setTimeout(late, this.options.timeout ?? 10_000) });
      this.socket!.send(JSON.stringify({ ...command, id }));
    });
  }

  private settle(id: number): Pending | undefined {
    const pending = this.pending.get(id);
    this.pending.delete(id);
    clearTimeout(pending?.timer);
    return pending;
  }

  private fail(error: TidegateError): void {
    for (const id of [...this.pending.keys()]) this.settle(id)!.reject(error);
  }

  private join(subscription: Subscription): void {
    const { channel, position, joinLeave } = subscription;
    this.command({ subscribe: channel, since: position, join_leave: joinLeave }).then(
      (ok) => {
        subscription.up = true;
        subscription.position ??= at(ok);
        subscription.emit("subscribed", { recovered: !!position && ok?.recovered !== false });
        if (ok?.members) subscription.emit("members", ok);
      },
      (error: TidegateError) => {
        // A connection that ended asks again by itself.
        if (error.code !== 1006) subscription.emit("error", error);
      },
    );
  }

  /** Connects soon: at once, or after a wait. */
  private wake(wait = 0): void {
    if (this.ended || this.starting || this.isOpen()) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), wait);
  }

  private async start(): Promise<void> {
    this.timer = undefined;
    if (this.starting || this.ended) return;
    this.starting = true;
    try {
      const { token } = this.options;
      this.token = typeof token === "function" ? await token() : token;
    } catch (error) {
      this.starting = false;
      return this.lost(401, `the token callback failed: ${error}`);
    }
    this.starting = false;
    const { transport = "auto" } = this.options;
    const Socket = this.options.WebSocket ?? globalThis.WebSocket;
    const isStream = transport === "sse" || (transport === "auto" && (!Socket || this.neverOpened >= 2));
    if (isStream) this.openStream();
    else this.openSocket(Socket);
  }

  private openSocket(Socket: typeof WebSocket): void {
    const protocols = ["tidegate.v1"];
    // A header that browsers can set, and that no log has.
    if (this.token) protocols.push(`bearer.${this.token}`);
    const socket = (this.socket = new Socket(`${this.url.replace(/^http/, "ws")}/ws?envelope=json`, protocols));
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.up("websocket");
      for (const subscription of this.subscriptions.values()) this.join(subscription);
    };
    socket.onmessage = ({ data }) => {
      if (socket === this.socket && typeof data === "string") this.take(JSON.parse(data));
    };
    const ended = (code: number, reason: string) => {
      if (socket !== this.socket) return;
      this.socket = undefined;
      if (!opened) this.neverOpened++;
      this.lost(code, reason);
    };
    socket.onclose = ({ code, reason }) => ended(code, reason);
    // Node 20 tells of a connection that never opened with an error alone.
    socket.onerror = () => opened || ended(1006, "");
  }

  private up(transport: "websocket" | "sse"): void {
    this.attempts = 0;
    if (transport === "websocket") this.neverOpened = 0;
    this.renewLater();
    this.emit("open", transport);
  }

  private take(frame: any): void {
    const subscription = this.subscriptions.get(frame.channel);
    if (frame.id !== undefined && ("ok" in frame || "error" in frame)) {
      const pending = this.settle(frame.id);
      if (frame.error) pending?.reject(new TidegateError(frame.error.code, frame.error.message));
      else pending?.resolve(frame.ok);
    } else if (frame.error) {
      this.emit("error", new TidegateError(frame.error.code, frame.error.message));
    } else if (frame.gap) {
      if (!subscription) return;
      subscription.position = at(frame.gap);
      subscription.emit("gap", { channel: frame.channel, reason: frame.gap.reason });
    } else if (frame.dropped) {
      subscription?.emit("dropped", frame.dropped);
    } else if ("data" in frame) {
      if (!subscription) return;
      const position = at(frame);
      if (position) subscription.position = position;
      const { channel, data, event, user } = frame;
      subscription.emit("message", { channel, event, user, position, data: frame.encoding ? bytes(data) : data });
    } else if (subscription && (frame.join || frame.leave || frame.members)) {
      if (frame.members) subscription.emit("members", frame);
      else subscription.emit(frame.join ? "join" : "leave", frame.join ?? frame.leave);
    } else if (subscription && frame.epoch && !subscription.position) {
      subscription.position = at(frame);
    }
  }

  /** The connection ended: says so, and comes back where that makes sense. */
  private lost(code: number, reason: string, wait?: number): void {
    this.fail(new TidegateError(1006, "the connection ended"));
    clearTimeout(this.renewal);
    for (const subscription of this.subscriptions.values()) subscription.up = false;
    if (this.ended) return;
    const isApplications = code >= 400 && code < 500;
    const [explanation, again] =
      CODES[code] ?? (isApplications ? ["the server refused the connection", canRenew(code, this.options.token)] : ["the connection ended", true]);
    const { min = 500, max = 30_000 } = this.options.backoff ?? {};
    let retryIn: number | undefined;
    if (again) {
      const bound = Math.min(max, min * 2 ** this.attempts++);
      // A drain spreads its clients over some seconds; an expired token needs no wait.
      const spread = code === 1012 ? 1000 + 4000 * Math.random() : code === 4401 ? 0 : bound * (0.5 + Math.random() / 2);
      retryIn = Math.round(wait ?? Math.min(spread, max));
      this.wake(retryIn);
    }
    this.emit("close", { code, reason, explanation, retryIn });
  }

  /** A fresh token goes over the open connection before the last one expires. */
  private renewLater(): void {
    clearTimeout(this.renewal);
    const expires = this.token && expiry(this.token);
    if (!expires || typeof this.options.token !== "function") return;
    const left = expires * 1000 - Date.now();
    const renew = async () => {
      try {
        this.token = await (this.options.token as () => Promise<string | undefined>)();
        if (this.stream) return this.wake();
        await this.command({ token: this.token });
        this.renewLater();
      } catch (error) {
        this.emit("error", new TidegateError(401, `the token was not renewed: ${error}`));
      }
    };
    // At a random moment of the last fifth, at least: the clients of one login do not come at once.
    this.renewal = setTimeout(renew, Math.min(Math.max(left * (0.8 + 0.1 * Math.random()), 1000), 2 ** 31 - 1));
  }

  /** All channels on one stream; another set of channels is another stream. */
  private async openStream(): Promise<void> {
    this.stream?.abort();
    const stream = (this.stream = new AbortController());
    const channels = [...this.subscriptions.values()];
    if (!channels.length) return;
    const query = new URLSearchParams(channels.map(({ channel }) => ["channel", channel]));
    query.set("envelope", "json");
    if (channels.some(({ joinLeave }) => joinLeave)) query.set("join_leave", "true");
    const headers: Record<string, string> = { accept: "text/event-stream" };
    if (this.token) headers.authorization = `Bearer ${this.token}`;
    if (channels.some(({ position }) => position)) {
      headers["last-event-id"] = channels.map(({ position }) => position ?? "").join();
    }
    let code = 1006;
    let reason = "the stream ended";
    let retry: number | undefined;
    try {
      const get = this.options.fetch ?? fetch;
      const answer = await get(`${this.url}/sse?${query}`, { headers, signal: stream.signal, cache: "no-store" });
      if (!answer.ok) {
        const text = await answer.text();
        const after = Number(answer.headers.get("retry-after"));
        if (after) retry = after * 1000;
        [code, reason] = [answer.status, detail(text)];
      } else {
        this.up("sse");
        for (const subscription of channels) {
          subscription.up = true;
          subscription.emit("subscribed", { recovered: !!subscription.position });
        }
        for await (const event of events(answer.body!)) {
          if (event.retry) retry = event.retry;
          if (event.event === "disconnect") {
            reason = event.data ?? "";
            code = reason === "the token has expired" ? 4401 : 4403;
          } else if (event.data) {
            this.take(JSON.parse(event.data));
          }
          event.id?.split(",").forEach((place, index) => {
            if (place && channels[index]) channels[index].position = place;
          });
        }
      }
    } catch (error) {
      reason = String(error);
    }
    if (stream !== this.stream || this.ended) return;
    this.stream = undefined;
    this.lost(code, reason, retry);
  }
}

interface StreamEvent {
  event?: string;
  data?: string;
  id?: string;
  retry?: number;
}

/** The events of a stream (WHATWG HTML 9.2.6), one for each block, also where it has only an id. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<StreamEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop()!;
    for (const block of blocks) {
      const event: StreamEvent = {};
      for (const line of block.split("\n")) {
        const colon = line.indexOf(":");
        const name = line.slice(0, colon);
        const value = line.slice(colon + 1).replace(/^ /, "");
        if (name === "data") event.data = event.data === undefined ? value : `${event.data}\n${value}`;
        else if (name === "retry") event.retry = Number(value);
        else if (name === "event" || name === "id") event[name] = value;
      }
      yield event;
    }
  }
}

/** The position in an object that has an epoch and an offset. */
function at(place: any): Position | undefined {
  return place?.epoch == null ? place?.position : `${place.epoch}:${place.offset}`;
}

/** With a new token a refusal may turn into a welcome; without, it stays one. */
function canRenew(code: number, token: Options["token"]): boolean {
  return code === 429 || code === 408 || (code === 401 && typeof token === "function");
}

function detail(text: string): string {
  try {
    const problem = JSON.parse(text);
    return problem.detail ?? problem.title ?? text;
  } catch {
    return text;
  }
}

/** Seconds since 1970; undefined for what is no JWT or never expires. */
function expiry(token: string): number | undefined {
  try {
    return JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).exp;
  } catch {
    return undefined;
  }
}

function bytes(base64: string): Uint8Array {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
