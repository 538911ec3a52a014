//! The decoder from outside: tables of good and bad input, properties, and another implementation beside it.

mod bounds;
mod differential;
mod properties;
mod support;
mod table;
