//! Applications over TLS of a private authority: one that lets in only who shows a certificate of it, one that speaks HTTP/2.

use std::fs;

use serde_json::json;
use tidegate_testkit::tls::Authority;
use tidegate_testkit::{DEADLINE, Gateway, Tool, WsClient};

const SERVER: &str = "\
import http.server, os, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        self.rfile.read(int(self.headers['content-length']))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('tls.crt', 'tls.key')
context.load_verify_locations('ca.crt')
context.verify_mode = ssl.CERT_REQUIRED
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
";

const SERVER_OF_HTTP_2: &str = "\
const { readFileSync } = require('node:fs');
const options = { key: readFileSync('tls.key'), cert: readFileSync('tls.crt'), allowHTTP1: true };
let sessions = 0;
const server = require('node:http2').createSecureServer(options, async (request, response) => {
  let body = '';
  for await (const chunk of request) body += chunk;
  response.writeHead(200, { 'content-type': 'application/json' });
  response.end(JSON.stringify([request.httpVersion, sessions, JSON.parse(body)]));
});
server.on('session', () => sessions++);
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
";

/// All questions, also those at the same time, go over one connection.
#[test]
fn an_application_that_speaks_http_2_is_asked_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(2100).write_to(directory.path());
    fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
    fs::write(directory.path().join("server.cjs"), SERVER_OF_HTTP_2).unwrap();
    let script = directory.path().join("server.cjs");
    let mut server = Tool::node(script.to_str().unwrap()).directory(directory.path()).spawn();
    let port: u16 = server.wait_line("its port", DEADLINE, |line| line.trim().parse().ok());
    let gateway = Gateway::builder()
        .config(&format!(
            "[hooks.app]\nurl = \"https://127.0.0.1:{port}/\"\nquestions = [\"message\"]\nca_file = \"{}\"\n",
            directory.path().join("ca.crt").display()
        ))
        .start();
    let ask = |client: &mut WsClient, n: usize| client.send_text(&format!("{{\"message\":{n},\"id\":{n}}}"));
    let mut clients: Vec<WsClient> =
        (0..200).map(|_| WsClient::connect(gateway.public(), "/ws?envelope=json")).collect();
    ask(&mut clients[0], 0);
    assert_eq!(clients[0].expect_json()["ok"], json!(["2.0", 1, 0]));
    for (n, client) in clients.iter_mut().enumerate() {
        ask(client, n);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.expect_json()["ok"], json!(["2.0", 1, n]));
    }
}

#[test]
fn a_certificate_is_shown_to_who_asks_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(2100).write_to(directory.path());
    fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
    fs::write(directory.path().join("server.py"), SERVER).unwrap();
    let script = directory.path().join("server.py");
    let mut server = Tool::python(script.to_str().unwrap()).directory(directory.path()).spawn();
    let port: u16 = server.wait_line("its port", DEADLINE, |line| line.trim().parse().ok());
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let hook = format!(
        "[hooks.app]\nurl = \"https://127.0.0.1:{port}/\"\nquestions = [\"connect\"]\nca_file = \"{}\"\n",
        path("ca.crt")
    );
    let certificate = format!("cert_file = \"{}\"\nkey_file = \"{}\"\n", path("tls.crt"), path("tls.key"));
    let status = |config: &str| {
        let gateway = Gateway::builder().config(config).start();
        let shaken = WsClient::try_connect(gateway.public(), "/ws?channel=a", &[]);
        shaken.map_or_else(|refused| refused.status, |_| 101)
    };
    assert_eq!(status(&hook), 503, "it is not let in without one");
    assert_eq!(status(&format!("{hook}{certificate}")), 101);
}
