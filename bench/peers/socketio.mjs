// The Socket.IO peer: rooms joined by Redis, publications over HTTP.
// Usage: node socketio.mjs HOST PORT REDIS_URL

import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const [host, port, redis] = process.argv.slice(2);

const publisher = createClient({ url: redis });
const subscriber = publisher.duplicate();
for (const client of [publisher, subscriber]) client.on("error", (error) => console.error(error.message));
await Promise.all([publisher.connect(), subscriber.connect()]);

const server = createServer((request, response) => {
  const channel = /^\/v1\/channels\/([^/]+)\/publish$/.exec(request.url)?.[1];
  if (request.method !== "POST" || !channel) return response.writeHead(404).end();
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    io.to(channel).emit("message", Buffer.concat(parts).toString());
    const body = '{"epoch":"0","offset":0}';
    response.writeHead(200, { "content-type": "application/json", "content-length": body.length });
    response.end(body);
  });
});

const io = new Server(server, {
  adapter: createAdapter(publisher, subscriber),
  transports: ["websocket"],
  perMessageDeflate: false,
});
io.on("connection", (socket) => socket.join(socket.handshake.query.channel));

server.listen({ port: Number(port), host, backlog: 4096 });
