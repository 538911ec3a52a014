//! How the addresses of gateways are told to clients that connect to them directly.

use std::fmt;

use tidegate_ops::config::Setting;

/// How the address that a client is told is made of a node's name and its `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlTemplate(Box<str>);

impl UrlTemplate {
    pub(crate) fn fill(&self, node: &str, address: &str) -> Box<str> {
        self.0.replace("{node}", node).replace("{address}", address).into()
    }
}

impl Setting for UrlTemplate {
    const EXPECTED: &'static str = r#"a ws:, wss:, http: or https: URL with {address} or {node} in it, such as "wss://{node}.example.com""#;

    fn from_text(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let names_a_node = rest.contains("{address}") || rest.contains("{node}");
        let rest = rest.replace("{address}", "").replace("{node}", "");
        let fits = ["ws", "wss", "http", "https"].contains(&scheme)
            && names_a_node
            && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}\"<>\\^`|".contains(&byte));
        fits.then(|| Self(text.into()))
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl fmt::Display for UrlTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
