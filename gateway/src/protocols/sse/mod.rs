//! Event streams (WHATWG HTML, section 9.2).

pub(crate) mod ids;
