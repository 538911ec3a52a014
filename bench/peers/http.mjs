// The ledger's peer on Node's http module: a plain answer, and a publish to nobody.
// Usage: node http.mjs HOST PORT PROCESSES

import cluster from "node:cluster";
import { createServer } from "node:http";

const [host, port, processes] = process.argv.slice(2);
const POST_PREFIX = "/v1/channels/".length;
const POST_SUFFIX = "/publish".length;
const subscribers = new Map();

function answer(response, type, body) {
  response.writeHead(200, { "content-type": type, "content-length": body.length });
  response.end(body);
}

function publish(path, message) {
  const channel = path.slice(POST_PREFIX, -POST_SUFFIX);
  for (const subscriber of subscribers.get(channel) ?? []) subscriber.send(message);
}

function serve(request, response) {
  if (request.method !== "POST") return answer(response, "text/plain", "ok\n");
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    publish(request.url, Buffer.concat(parts));
    answer(response, "application/json", '{"epoch":"0","offset":0}');
  });
}

// A single process serves by itself: the module cluster would add a second one that only hands connections on.
if (Number(processes) > 1 && cluster.isPrimary) {
  for (let index = 0; index < Number(processes); index += 1) cluster.fork();
} else {
  createServer(serve).listen(Number(port), host);
}
