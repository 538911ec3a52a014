//! Names and lists inside JSON bodies, checked while they are parsed, so that a fault knows its place.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use tidegate_backplane::Channel;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, Type},
    },
};

use crate::{
    event,
    http::query::{IDEMPOTENCY_KEY_BYTES_MAX, is_idempotency_key},
};

/// A channel's name in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::http) struct ChannelName(pub(in crate::http) Channel);

/// An event's name in JSON.
#[derive(Debug)]
pub(in crate::http) struct EventName(pub(in crate::http) Box<str>);

/// An idempotency key in JSON.
#[derive(Debug)]
pub(in crate::http) struct IdempotencyKey(pub(in crate::http) Box<str>);

impl<'de> Deserialize<'de> for ChannelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Channel::new(&text(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for EventName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = text(deserializer)?;
        event::check_name(&name).map_err(D::Error::custom)?;
        Ok(Self(name.into()))
    }
}

impl<'de> Deserialize<'de> for IdempotencyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = text(deserializer)?;
        if is_idempotency_key(&key) {
            return Ok(Self(key.into()));
        }
        Err(D::Error::custom(format_args!(
            "an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"
        )))
    }
}

/// A string, borrowed from the body unless it has escapes.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    struct Text;
    impl<'de> Visitor<'de> for Text {
        type Value = Cow<'de, str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
            Ok(Cow::Borrowed(text))
        }
        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Cow::Owned(text.to_owned()))
        }
    }
    deserializer.deserialize_str(Text)
}

/// A JSON object and nothing else: a derived struct would also take an array of its members in order.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer, |fields| Ok(Self(fields)))
    }
}

/// Reads an object's members and makes of them what is wanted, or says what is wrong with them together. It
/// happens inside the visit, so that the fault gets its line and column.
pub(super) fn object<'de, D, T, U, F>(deserializer: D, finish: F) -> Result<U, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
    F: FnOnce(T) -> Result<U, &'static str>,
{
    struct Members<T, F>(F, PhantomData<T>);
    impl<'de, T, U, F> Visitor<'de> for Members<T, F>
    where
        T: Deserialize<'de>,
        F: FnOnce(T) -> Result<U, &'static str>,
    {
        type Value = U;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<U, A::Error> {
            let fields = T::deserialize(MapAccessDeserializer::new(members))?;
            (self.0)(fields).map_err(A::Error::custom)
        }
    }
    deserializer.deserialize_map(Members(finish, PhantomData))
}

/// A member that may be left out, but is not null when it is there.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Longest user or connection name.
const TARGET_CHARACTERS_MAX: usize = 256;

/// The name of a user, or of a connection.
#[derive(Debug)]
pub(super) struct TargetName(pub(super) Box<str>);

impl<'de> Deserialize<'de> for TargetName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Box::<str>::deserialize(deserializer)?;
        if (1..=TARGET_CHARACTERS_MAX).contains(&name.chars().count()) {
            return Ok(Self(name));
        }
        Err(D::Error::custom(format_args!("a name has 1 to {TARGET_CHARACTERS_MAX} characters")))
    }
}

/// A whole number that is not negative. JSON has one kind of number, so `2.0` is one too. Up to 2^53 - 1, which every
/// reader of JSON knows exactly (RFC 8259 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole(pub(super) u64);

impl Whole {
    pub(super) const MAX: u64 = (1 << 53) - 1;
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number of 0 to {}", Whole::MAX)
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
                match number <= Whole::MAX {
                    true => Ok(Whole(number)),
                    false => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
                }
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Whole, E> {
                match number.fract() == 0.0 && (0.0..=Whole::MAX as f64).contains(&number) {
                    true => Ok(Whole(number as u64)),
                    false => Err(E::invalid_value(Unexpected::Float(number), &self)),
                }
            }
        }
        deserializer.deserialize_u64(Number)
    }
}

/// A list of 1 to `MAX`. It stops at the bound: what is refused is not collected first.
pub(super) fn bounded<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of 1 to {MAX}")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = list.next_element()? {
                if items.len() == MAX {
                    return Err(A::Error::custom(format_args!("at most {MAX} are allowed")));
                }
                items.push(item);
            }
            if items.is_empty() {
                return Err(A::Error::custom("at least one is needed"));
            }
            Ok(items)
        }
    }
    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

/// A [`bounded`] list of channels in which none is named twice.
pub(super) fn channels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChannelName>, D::Error> {
    let channels = bounded::<D, ChannelName, { super::CHANNELS_MAX }>(deserializer)?;
    let mut seen = std::collections::HashSet::with_capacity(channels.len());
    match channels.iter().find(|channel| !seen.insert(*channel)) {
        Some(twice) => Err(D::Error::custom(format_args!("channel {} is named twice", twice.0))),
        None => Ok(channels),
    }
}

/// The same for a list that may be left out.
pub(super) fn channels_present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<ChannelName>>, D::Error> {
    channels(deserializer).map(Some)
}

impl PartialSchema for ChannelName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("1 to 200 letters, digits or characters of _-=@,.;:#/$"))
            .min_length(Some(1))
            .max_length(Some(tidegate_backplane::CHANNEL_BYTES_MAX))
            .pattern(Some("^[A-Za-z0-9_=@,.;:#/$-]{1,200}$"))
            .examples(["news"])
            .build()
            .into()
    }
}

impl ToSchema for ChannelName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_may_be_written_with_a_fraction_of_zero() {
        let read = |text| serde_json::from_str::<Whole>(text).ok().map(|number| number.0);
        assert_eq!(["0", "2.0", "2e3", "-0.0"].map(read), [Some(0), Some(2), Some(2000), Some(0)]);
        assert_eq!(["9007199254740991", "1893456000.0"].map(read), [Some(Whole::MAX), Some(1_893_456_000)]);
        assert_eq!(["-1", "-1.0", "2.5", "9007199254740992", "1e300", "\"2\"", "null"].map(read), [None; 7]);
    }
}
