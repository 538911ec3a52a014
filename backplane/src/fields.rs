//! The fields of records for another process: all that this crate has of `tidegate_wire`.

pub(crate) use tidegate_wire::fields::{Malformed, Reader, Writer};
