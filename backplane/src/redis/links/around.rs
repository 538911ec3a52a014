//! The deployment that a link belongs to, as the link sees it.

use super::dial::Dialer;
use super::probe::Probe;
use crate::redis::contract::{LinkId, Session};
use crate::redis::options::Host;

/// What a link asks of the deployment that it belongs to.
pub(super) trait Around: Send + Sync {
    fn dialer(&self) -> &Dialer;
    /// A probe for the link; `None` while it has no slots.
    fn probe(&self, link: LinkId) -> Option<Probe>;
    /// Whether the tag lives there.
    fn owns(&self, link: LinkId, tag: &str) -> bool;
    /// Scripts that the server is to know before it is asked for them.
    fn scripts(&self) -> &[Box<str>];
    /// Where what is subscribed is read.
    fn host(&self) -> Option<&dyn Host>;
    fn replicas(&self) -> u8;
    fn next_session(&self) -> Session;
    /// Something of a link changed.
    fn changed(&self);
    /// Has the slots read again soon.
    fn refresh(&self);
}
