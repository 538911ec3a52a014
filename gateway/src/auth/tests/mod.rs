//! Tests of tokens and key sets, with keys made on the spot.
#![allow(clippy::unwrap_used)]

mod issuer;
mod key_sets;
mod tokens;
