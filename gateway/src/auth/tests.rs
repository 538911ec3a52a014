//! Tests of tokens and key sets.
