// The Bun peer: the benchmark's URL surface on Bun.serve with its own publish and subscribe.
// Usage: bun bun.ts HOST PORT [PROCESSES]

const [hostname, port, processes] = Bun.argv.slice(2);
const POST_PREFIX = "/v1/channels/".length;
const POST_SUFFIX = "/publish".length;
const json = { headers: { "content-type": "application/json" } };

// Several processes share the port; each then has subscribers and publications of its own.
if (Number(processes) > 1) {
  for (let index = 1; index < Number(processes); index += 1) {
    Bun.spawn([process.execPath, import.meta.path, hostname, port, "shared"]);
  }
}

Bun.serve({
  hostname,
  port: Number(port),
  reusePort: processes !== undefined,
  async fetch(request, server) {
    // Finding the path by hand spares Bun a URL object per request.
    const path = request.url.slice(request.url.indexOf("/", "http://".length));
    if (request.method === "POST") {
      server.publish(path.slice(POST_PREFIX, -POST_SUFFIX), await request.text());
      return new Response('{"epoch":"0","offset":0}', json);
    }
    if (path === "/livez") return new Response("ok\n");
    // A socket's data is its channel; a socket that echoes has none.
    const channel = path.startsWith("/ws?channel=") ? path.slice("/ws?channel=".length) : "";
    if (server.upgrade(request, { data: channel })) return undefined;
    return new Response(null, { status: 404 });
  },
  websocket: {
    perMessageDeflate: false,
    // Bun pings 16 s before the idle timeout: 40 s puts the pings 24 s apart, near the 25 s of the others.
    idleTimeout: 40,
    sendPings: true,
    // High enough that a benchmark never reaches it: past it Bun drops messages.
    backpressureLimit: 64 * 1024 * 1024,
    open(socket) {
      if (socket.data) socket.subscribe(socket.data);
    },
    message(socket, message) {
      if (!socket.data) socket.send(message);
    },
  },
});
