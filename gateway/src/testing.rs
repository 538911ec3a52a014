//! What tests of several modules share.

use std::time::SystemTime;

use md5::{Digest as _, Md5};

use crate::{app::apps::signature::Signer, config::Secret};

/// A path with the query that signs it now, as a server of the app would.
pub(crate) fn signed_path(
    method: &str,
    path: &str,
    parameters: &[(&str, &str)],
    body: &str,
    key: &str,
    secret: &str,
) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut query: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    query.extend([format!("auth_key={key}"), format!("auth_timestamp={now}"), "auth_version=1.0".to_owned()]);
    if !body.is_empty() {
        let digits: String = Md5::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        query.push(format!("body_md5={digits}"));
    }
    query.sort();
    let query = query.join("&");
    let signer = Signer::new(key.into(), [Secret::new(secret.as_bytes())].iter());
    let signature = signer.sign(format!("{method}\n{path}\n{query}").as_bytes());
    format!("{path}?{query}&auth_signature={signature}")
}
