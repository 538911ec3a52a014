//! A subscription that is made for a connection, or granted to it: as a token's claims and an application's answers say it, in
//! Centrifugo's words.

use base64::{DecodeError, Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A subscription that the server makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerSubscription {
    /// What its client is told with it: JSON, or octets.
    pub(crate) data: Vec<u8>,
    /// JSON that other members see in presence, of this subscription alone.
    pub(crate) info: Option<Box<str>>,
    pub(crate) overrides: Overrides,
}

/// Where a subscription differs from its namespace: `override`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Overrides {
    /// Whether it is listed, in a namespace that lists.
    #[serde(deserialize_with = "value")]
    pub(crate) presence: Option<bool>,
    /// Whether those who ask are told that it joins and leaves, in a namespace that lists.
    #[serde(deserialize_with = "value")]
    pub(crate) join_leave: Option<bool>,
    /// Whether its client is told who joins and leaves, in a namespace that lists.
    #[serde(rename = "force_push_join_leave", deserialize_with = "value")]
    pub(crate) push_join_leave: Option<bool>,
    /// Whether its client may come back to where it was without having asked for that.
    #[serde(rename = "force_recovery", deserialize_with = "value")]
    pub(crate) recovery: Option<bool>,
    /// Whether its client is told where it is without having asked for that.
    #[serde(rename = "force_positioning", deserialize_with = "value")]
    pub(crate) positioning: Option<bool>,
}

/// The same as JSON has it.
#[derive(Debug, Deserialize)]
pub(crate) struct RawSubscription<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    /// In place of `data`.
    b64data: Option<Box<str>>,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    /// In place of `info`.
    b64info: Option<Box<str>>,
    #[serde(rename = "override")]
    overrides: Option<Overrides>,
}

impl RawSubscription<'_> {
    pub(crate) fn read(self) -> Result<ServerSubscription, DecodeError> {
        let data = match self.b64data.as_deref() {
            None | Some("") => self.data.map_or("", RawValue::get).into(),
            Some(base64) => STANDARD.decode(base64)?,
        };
        let info = info(self.info.map(RawValue::get), self.b64info.as_deref())?;
        Ok(ServerSubscription { data, info, overrides: self.overrides.unwrap_or_default() })
    }
}

/// What others see of a user, as JSON. Octets that are none are told as payloads are: text as a string, others in base64.
pub(crate) fn info(json: Option<&str>, base64: Option<&str>) -> Result<Option<Box<str>>, DecodeError> {
    let Some(base64) = base64.filter(|base64| !base64.is_empty()) else {
        return Ok(json.map(Box::from));
    };
    let octets = STANDARD.decode(base64)?;
    let info = match str::from_utf8(&octets) {
        Ok(text) => match serde_json::from_str::<&RawValue>(text) {
            Ok(json) => json.get().into(),
            Err(_) => serde_json::Value::from(text).to_string().into(),
        },
        Err(_) => serde_json::Value::from(base64).to_string().into(),
    };
    Ok(Some(info))
}

/// `{"value":true}`.
fn value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    struct Value {
        #[serde(default)]
        value: bool,
    }
    Ok(Option::<Value>::deserialize(deserializer)?.map(|it| it.value))
}
