//! Query parameters and names that arrive as text: each known, given once, and of its form.

use std::borrow::Cow;

use http::{HeaderMap, Uri};
use tidegate_backplane::{CHANNEL_BYTES_MAX, Channel, Position};

use super::error::{ApiError, ParameterFault, ParameterPlace};
use crate::event;
use tidegate_wire::head::form_decode;

/// Longest idempotency key in bytes; room for a UUID with a prefix.
const NAME_CHARACTERS_MAX: usize = 256;
pub(super) const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// The parameters of one request, checked to be known and not repeated.
#[derive(Debug)]
pub(super) struct Query<'a>(Vec<(&'static str, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Splits the query; a name that is not in `known` is refused, so that a typo is not an empty filter.
    pub(super) fn parse(uri: &'a Uri, known: &[&'static str]) -> Result<Self, ApiError> {
        let Some(query) = uri.query() else { return Ok(Self(Vec::new())) };
        let mut parameters: Vec<(&'static str, Cow<'a, str>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &'a str| {
                let bad = |_| fault(ParameterPlace::Query, name, ParameterFault::Encoding);
                form_decode(text).map_err(bad)
            };
            let (name, value) = (decode(name)?, decode(value)?);
            let Some(known) = known.iter().copied().find(|known| *known == name) else {
                return Err(fault(ParameterPlace::Query, &name, ParameterFault::Unknown));
            };
            if parameters.iter().any(|(before, _)| *before == known) {
                return Err(fault(ParameterPlace::Query, known, ParameterFault::Repeated));
            }
            parameters.push((known, value));
        }
        Ok(Self(parameters))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    /// A whole number from 1 to `max`.
    pub(super) fn limit(&self, name: &str, default: usize, max: usize) -> Result<usize, ApiError> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && (1..=max).contains(&number) => Ok(number),
            _ => Err(fault(ParameterPlace::Query, name, ParameterFault::Number { min: 1, max })),
        }
    }

    pub(super) fn position(&self, name: &str) -> Result<Option<Position>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| fault(ParameterPlace::Query, name, ParameterFault::Position))
    }

    /// A part of a channel name; may be empty.
    pub(super) fn channel_part(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some("") => Ok(Some("")),
            Some(text) => match Channel::new(text) {
                Ok(_) => Ok(Some(text)),
                Err(_) => {
                    let wrong = ParameterFault::ChannelPart { max: CHANNEL_BYTES_MAX };
                    Err(fault(ParameterPlace::Query, name, wrong))
                }
            },
        }
    }

    pub(super) fn event(&self, name: &str) -> Result<Option<Box<str>>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        event::check_name(text).map_err(|error| fault(ParameterPlace::Query, name, error.into()))?;
        Ok(Some(text.into()))
    }
}

/// The header `Idempotency-Key`.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<Box<str>>, ApiError> {
    const NAME: &str = "idempotency-key";
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(fault(ParameterPlace::Header, NAME, ParameterFault::Repeated));
    }
    match value.to_str() {
        Ok(text) if is_idempotency_key(text) => Ok(Some(text.into())),
        _ => Err(fault(ParameterPlace::Header, NAME, ParameterFault::Key { max: IDEMPOTENCY_KEY_BYTES_MAX })),
    }
}

pub(crate) fn is_idempotency_key(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= IDEMPOTENCY_KEY_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The channel of a path segment, percent-decoded. A `/` in a channel's name travels as `%2F`.
pub(super) fn channel(segment: &str) -> Result<Channel, ApiError> {
    if !segment.contains('%') {
        return Ok(Channel::new(segment)?);
    }
    // Bytes that are no UTF-8 become U+FFFD, which no channel name has.
    let decoded = percent_encoding::percent_decode_str(segment).decode_utf8_lossy();
    Ok(Channel::new(&decoded)?)
}

/// The name of a user or of a connection.
pub(super) fn name<'q>(query: &'q Query<'_>, parameter: &str) -> Result<Option<&'q str>, ApiError> {
    let (name, max) = (query.get(parameter), NAME_CHARACTERS_MAX);
    match name.is_none_or(|name| (1..=max).contains(&name.chars().count())) {
        true => Ok(name),
        false => Err(fault(ParameterPlace::Query, parameter, ParameterFault::Length { max })),
    }
}

fn fault(place: ParameterPlace, name: &str, fault: ParameterFault) -> ApiError {
    // A name a client made up is echoed, but not at any length.
    let name = name.chars().take(64).collect::<String>().into();
    ApiError::InvalidParameter { place, name, fault }
}
