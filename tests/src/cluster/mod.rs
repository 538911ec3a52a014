//! A cluster under load: publishers that number what they publish, clients that come back, and the judgement over what
//! they were told. Shared by the loss table, the cluster tests and those of the router.

pub mod figures;
pub mod fleet;
pub mod http;
pub mod ledger;
pub mod publishers;
pub mod room;
pub mod site;
