//! Whose request it is: the signature over method, path and query, and the MD5 that ties the body to it.

use std::{borrow::Cow, time::SystemTime};

use http::{Method, Uri};
use md5::{Digest as _, Md5};

use super::PusherError;
use crate::app::apps::App;

/// The decoded query in order of the names in lower case, which is the order in which it is signed. `auth_signature` is
/// not among it.
#[derive(Debug)]
pub(super) struct Parameters<'r>(Vec<(Cow<'r, str>, Cow<'r, str>)>);

/// How far the clocks of server and gateway may differ.
const TIMESTAMP_WINDOW_S: u64 = 600;
/// Of a wrong signature that is shown; a right one has 64.
const SHOWN_CHARACTERS: usize = 128;

/// The parameters of a request that the app signed, not long ago.
pub(super) fn verify<'r>(app: &App, method: &Method, uri: &'r Uri) -> Result<Parameters<'r>, PusherError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    verify_at(now.as_secs(), app, method, uri)
}

fn verify_at<'r>(
    now_s: u64,
    app: &App,
    method: &Method,
    uri: &'r Uri,
) -> Result<Parameters<'r>, PusherError> {
    let (parameters, signature) = Parameters::of(uri.query().unwrap_or_default());
    if parameters.get("auth_key") != Some(&*app.key) {
        return Err(PusherError::UnknownKey);
    }
    if parameters.get("auth_version") != Some("1.0") {
        return Err(PusherError::Version);
    }
    let given_s = parameters.get("auth_timestamp").and_then(|text| text.parse::<u64>().ok());
    let given_s = given_s.ok_or(PusherError::TimestampMissing)?;
    let signed = parameters.signed(method, uri.path());
    if !app.verify(&signed, &signature) {
        let sent = signature.chars().take(SHOWN_CHARACTERS).collect();
        return Err(PusherError::Signature { signed: signed.into(), sent });
    }
    // After the signature, so that its sentence goes to nobody else.
    if given_s.abs_diff(now_s) > TIMESTAMP_WINDOW_S {
        return Err(PusherError::TimestampExpired { given_s, now_s });
    }
    Ok(parameters)
}

/// Whether the body is the one that was signed. A body needs its MD5; without one an MD5 is checked where it is sent, as
/// some SDKs do with every request.
pub(super) fn verify_body(parameters: &Parameters<'_>, body: &[u8]) -> Result<(), PusherError> {
    match parameters.get("body_md5") {
        None if body.is_empty() => Ok(()),
        Some(sent) if is_md5(sent, body) => Ok(()),
        _ => Err(PusherError::BodyMd5),
    }
}

fn is_md5(sent: &str, body: &[u8]) -> bool {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Md5::digest(body);
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    // What is compared is no secret: the sender has the body.
    sent.len() == 32 && digits.zip(sent.bytes()).all(|(digit, sent)| DIGITS[usize::from(digit)] == sent)
}

impl<'r> Parameters<'r> {
    /// The parameters of a query, and the signature.
    fn of(query: &'r str) -> (Self, Cow<'r, str>) {
        let mut signature = Cow::Borrowed("");
        let mut parameters = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                true => Cow::Owned(name.to_ascii_lowercase()),
                false => name,
            };
            match &*name {
                "auth_signature" => signature = value,
                _ => parameters.push((name, value)),
            }
        }
        parameters.sort_by(|(a, _), (b, _)| a.cmp(b));
        (Self(parameters), signature)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// What is signed. The values are those that were meant, without the escapes of the address.
    fn signed(&self, method: &Method, path: &str) -> String {
        let bytes: usize = self.0.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        let mut text = String::with_capacity(method.as_str().len() + path.len() + bytes + 2);
        text.push_str(method.as_str());
        text.push('\n');
        text.push_str(path);
        text.push('\n');
        for (index, (name, value)) in self.0.iter().enumerate() {
            if index > 0 {
                text.push('&');
            }
            text.push_str(name);
            text.push('=');
            text.push_str(value);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        app::{
            apps::{AppId, Apps},
            webhooks::Webhooks,
        },
        config::{AppEntry, Config, Secret},
    };

    /// The worked example of Pusher's page on its HTTP API. The signature, recomputed:
    ///
    /// ```console
    /// $ printf 'POST\n/apps/3/events\nauth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&body_md5=ec365a775a4cd0599faeb73354201b6f' |
    ///       openssl dgst -sha256 -hmac 7ad3773142a6692b25b8
    /// ```
    const QUERY: &str = "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&\
                         body_md5=ec365a775a4cd0599faeb73354201b6f&\
                         auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c";
    /// `printf '%s' BODY | openssl dgst -md5` gives the `body_md5` above.
    const BODY: &str = r#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#;
    const THEN: u64 = 1_353_088_179;

    fn app() -> Arc<App> {
        let entry = AppEntry {
            key: Some("278d425bdf160c739803".into()),
            secret: Some(Secret::new(b"7ad3773142a6692b25b8")),
            ..AppEntry::default()
        };
        let mut config = Config::default();
        config.apps.0.insert(AppId::new("3").expect("an id"), entry);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let webhooks = Webhooks::new(config.webhooks.clone(), runtime.handle().clone()).expect("no webhooks");
        Apps::new(&config, Arc::new(webhooks)).expect("apps").by_id("3").expect("the app")
    }

    fn verdict(now_s: u64, method: &Method, path: &str, query: &str) -> String {
        let uri: Uri = format!("{path}?{query}").parse().expect("an address");
        match verify_at(now_s, &app(), method, &uri) {
            Ok(_) => "good".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn signatures() {
        let check = |now_s, method, path, query: &str, expect: &str| {
            assert_eq!(verdict(now_s, &method, path, query), expect, "{query}");
        };
        let post = || Method::POST;
        let path = "/apps/3/events";
        check(THEN, post(), path, QUERY, "good");
        // In any order; names in upper case are signed in lower case; escapes are not signed.
        let pairs: Vec<_> = QUERY.split('&').rev().collect();
        check(THEN, post(), path, &pairs.join("&"), "good");
        check(THEN, post(), path, &QUERY.replace("auth_key", "Auth_Key"), "good");
        check(THEN, post(), path, &QUERY.replace("1.0", "1%2E0"), "good");
        check(THEN + 600, post(), path, QUERY, "good");
        check(THEN - 600, post(), path, QUERY, "good");
        let expired = "Timestamp expired: Given timestamp (2012-11-16T17:49:39Z) not within 600s of server time \
                       (2012-11-16T17:59:40Z)";
        check(THEN + 601, post(), path, QUERY, expired);
        check(THEN, post(), path, &QUERY.replace("278d", "278e"), "Unknown auth_key");
        check(THEN, post(), path, "", "Unknown auth_key");
        check(THEN, post(), path, &QUERY.replace("1.0", "1.1"), "Version not supported");
        check(THEN, post(), path, &QUERY.replace("=1353088179", "="), "Timestamp required");
        let signed = "Invalid signature: you should have sent HmacSHA256Hex(\"GET\\n/apps/3/events\\n\
                      auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&\
                      body_md5=ec365a775a4cd0599faeb73354201b6f\", your_secret_key), but you sent \
                      \"da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c\"";
        check(THEN, Method::GET, path, QUERY, signed);
        for (path, query) in [
            ("/apps/3/event", QUERY.to_owned()),
            (path, QUERY.replace("1353088179", "1353088178")),
            (path, QUERY.replace("ec365", "ec366")),
            (path, format!("{QUERY}&info=user_count")),
            (path, QUERY.replace("auth_signature=da", "auth_signature=DA")),
            (path, QUERY.split("&auth_signature").next().unwrap_or_default().to_owned()),
        ] {
            let verdict = verdict(THEN, &Method::POST, path, &query);
            assert!(verdict.starts_with("Invalid signature: "), "{query}: {verdict}");
        }
    }

    #[test]
    fn bodies() {
        let md5 = |md5: &str| Parameters(vec![("body_md5".into(), md5.to_owned().into())]);
        let check = |parameters: Parameters<'_>, body: &str, expect: bool| {
            assert_eq!(verify_body(&parameters, body.as_bytes()).is_ok(), expect, "{parameters:?} {body}");
        };
        let good = "ec365a775a4cd0599faeb73354201b6f";
        check(md5(good), BODY, true);
        check(md5(good), &BODY.replace("foo", "fop"), false);
        check(md5(good), "", false);
        check(md5(&good[..31]), BODY, false);
        check(md5(&format!("{good}0")), BODY, false);
        check(md5(""), BODY, false);
        check(Parameters(Vec::new()), BODY, false);
        check(Parameters(Vec::new()), "", true);
        check(md5("d41d8cd98f00b204e9800998ecf8427e"), "", true);
    }
}
