//! How a field of a message is written in JSON: left out when it is zero, as its Protobuf form is, and `null` is zero.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error as _};
use serde_json::value::RawValue;

use crate::json::{JsonValue, push_value};

/// A field; a `Vec<u8>` is a payload, which in JSON is any JSON value.
pub(super) trait Field<'de>: Sized + Default + PartialEq {
    fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;

    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

macro_rules! fields {
    ($($type:ty),*) => { $(
        impl<'de> Field<'de> for $type {
            fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.serialize(serializer)
            }

            fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Option::<Self>::deserialize(deserializer)?.unwrap_or_default())
            }
        }
    )* };
}

fields!(u32, i32, u64, i64, bool, String);

impl<'de, T: Serialize + Deserialize<'de> + PartialEq> Field<'de> for Option<T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize(serializer)
    }

    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

impl<'de, T: Serialize + Deserialize<'de> + PartialEq> Field<'de> for BTreeMap<String, T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize(serializer)
    }

    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Self>::deserialize(deserializer)?.unwrap_or_default())
    }
}

impl<'de> Field<'de> for Vec<u8> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Ok(text) = std::str::from_utf8(self) else { return STANDARD.encode(self).serialize(serializer) };
        let mut json = Vec::with_capacity(text.len());
        if !push_value(text, &mut json) {
            return text.serialize(serializer);
        }
        let json = String::from_utf8(json).map_err(S::Error::custom)?;
        RawValue::from_string(json).map_err(S::Error::custom)?.serialize(serializer)
    }

    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(JsonValue::deserialize(deserializer)?.get().as_bytes().to_vec())
    }
}
