//! `tidegate-bench`
fn main() {}
