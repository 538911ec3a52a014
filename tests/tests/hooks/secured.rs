//! An application over TLS of a private authority, which lets in only who shows a certificate of it.

use std::fs;

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
