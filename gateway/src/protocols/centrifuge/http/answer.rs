//! Replies: `{"result":…}` or `{"error":{"code":…,"message":…}}`, with status 200 either way.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::Error as _};
use tidegate_wire::{centrifuge::code::ErrorCode, json};

use super::Answer;
use crate::{http::ApiError, node::PublishError, problem::Place};
use tidegate_backplane::BackplaneError;

/// Why a command was not carried out.
#[derive(Debug)]
pub(super) enum Refused {
    /// Its parameters are no JSON, or none of this method.
    Json(serde_json::Error),
    Code {
        code: ErrorCode,
        why: Cow<'static, str>,
    },
}

#[derive(Serialize)]
struct Error {
    code: u32,
    message: String,
}

impl Refused {
    pub(super) fn because(code: ErrorCode, why: impl Into<Cow<'static, str>>) -> Self {
        Self::Code { code, why: why.into() }
    }

    pub(super) fn bad(why: impl Into<Cow<'static, str>>) -> Self {
        Self::because(ErrorCode::BadRequest, why)
    }

    fn error(&self) -> Error {
        let (code, why) = match self {
            Self::Json(error) => (ErrorCode::BadRequest, json::fault(error)),
            Self::Code { code, why } => (*code, Cow::Borrowed(&**why)),
        };
        let message = match &*why {
            "" => code.text().to_owned(),
            why => format!("{}: {why}", code.text()),
        };
        Error { code: code as u32, message }
    }
}

impl From<serde_json::Error> for Refused {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

impl From<BackplaneError> for Refused {
    fn from(error: BackplaneError) -> Self {
        Self::because(ErrorCode::Internal, error.to_string())
    }
}

impl From<PublishError> for Refused {
    fn from(error: PublishError) -> Self {
        let code = match error {
            PublishError::TooLarge { .. } => ErrorCode::LimitExceeded,
            PublishError::Overloaded { .. } | PublishError::Backplane(_) => ErrorCode::Internal,
        };
        Self::because(code, error.to_string())
    }
}

/// The parameters of a method: an object, since a derived struct would also take an array of its members in order.
pub(super) fn parameters<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Refused> {
    if json.trim_ascii_start().first().is_some_and(|&first| first != b'{') {
        return Err(Refused::Json(serde_json::Error::custom("parameters are an object")));
    }
    Ok(serde_json::from_slice(json)?)
}

/// A JSON object, as a result.
pub(super) fn result(value: &impl Serialize) -> Answer {
    Ok(serde_json::to_vec(value)?)
}

/// A body that is not what was asked for.
pub(super) fn invalid(error: &serde_json::Error) -> ApiError {
    let at = Place { line: error.line().max(1), column: error.column(), path: ".".into() };
    ApiError::InvalidJson { reason: json::fault(error).into(), at }
}

/// Appends a reply.
pub(super) fn put_reply(id: Option<u32>, answer: Answer, json: &mut Vec<u8>) {
    json.push(b'{');
    if let Some(id) = id {
        json.extend_from_slice(format!("\"id\":{id},").as_bytes());
    }
    match answer {
        Ok(result) => {
            json.extend_from_slice(b"\"result\":");
            json.extend_from_slice(&result);
        }
        Err(refused) => put_error(&refused, json),
    }
    json.push(b'}');
}

/// The replies of a batch: each result is under the name of its method.
pub(super) fn replies(replies: Vec<(Box<str>, Answer)>) -> Vec<u8> {
    let mut json = b"{\"replies\":[".to_vec();
    for (nth, (method, answer)) in replies.into_iter().enumerate() {
        json.extend_from_slice(if nth > 0 { b",{" } else { b"{" });
        match answer {
            Ok(result) => {
                // One that was carried out, so its name is one of ours.
                json.push(b'"');
                json.extend_from_slice(method.as_bytes());
                json.extend_from_slice(b"\":");
                json.extend_from_slice(&result);
            }
            Err(refused) => put_error(&refused, &mut json),
        }
        json.push(b'}');
    }
    json.extend_from_slice(b"]}");
    json
}

fn put_error(refused: &Refused, json: &mut Vec<u8>) {
    json.extend_from_slice(b"\"error\":");
    let written = serde_json::to_writer(json, &refused.error());
    debug_assert!(written.is_ok(), "its members are a number and a text: {written:?}");
}
