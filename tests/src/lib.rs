//! End-to-end tests of Tidegate: real processes, real sockets, clients that share no code with the product.
//!
//! The tests are one executable, `tests/e2e`, so that they link once; its modules are the features. The scripts
//! that Node, Python and Chromium run are in `clients/`. `cargo xtask test --only e2e` builds the release binary,
//! installs the foreign clients and runs them all.
