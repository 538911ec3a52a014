// The Node ws peer: the benchmark's URL surface on node:http and the ws package.
// Usage: node ws.mjs HOST PORT

import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const [host, port] = process.argv.slice(2);
const HEARTBEAT_MS = 25_000;
const channels = new Map();

function publish(channel, payload) {
  for (const socket of channels.get(channel) ?? []) socket.send(payload, { binary: false });
}

const server = createServer((request, response) => {
  const channel = /^\/v1\/channels\/([^/]+)\/publish$/.exec(request.url)?.[1];
  if (request.method !== "POST" || !channel) return response.writeHead(404).end();
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    publish(channel, parts.length === 1 ? parts[0] : Buffer.concat(parts));
    const body = '{"epoch":"0","offset":0}';
    response.writeHead(200, { "content-type": "application/json", "content-length": body.length });
    response.end(body);
  });
});

const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (socket, request) => {
  const channel = request.url.startsWith("/ws?channel=") ? request.url.slice("/ws?channel=".length) : "";
  socket.on("error", () => socket.terminate());
  if (!channel) {
    socket.on("message", (message, binary) => socket.send(message, { binary }));
    return;
  }
  let subscribers = channels.get(channel);
  if (!subscribers) channels.set(channel, (subscribers = new Set()));
  subscribers.add(socket);
  socket.on("close", () => subscribers.delete(socket));
});

setInterval(() => {
  for (const socket of sockets.clients) socket.ping();
}, HEARTBEAT_MS);

server.listen({ port: Number(port), host, backlog: 4096 });
