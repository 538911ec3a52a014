//! The image and the compose file on a real container engine, which `cargo xtask containers` starts and fills with images;
//! and a real systemd, which needs namespaces as that does.

#![allow(clippy::unwrap_used)]

mod compose;
mod docker;
mod image;
mod serve;
mod stack;
mod systemd;
