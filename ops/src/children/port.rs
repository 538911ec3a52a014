//! The internal port of a process that runs children.

use std::{io, net::TcpListener as StdTcpListener, sync::Arc};

use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use rustix::process::{Signal, getpid, kill_process};
use tokio::net::TcpListener;

use crate::{
    hosts::InternalAccess,
    probes::{self, Operated, Upgrade, Upgrading},
};

struct Parent {
    access: InternalAccess,
    upgrade: Arc<Upgrade>,
}

/// Serves it for as long as the runtime runs.
pub fn serve(listener: StdTcpListener, access: InternalAccess, upgrade: Arc<Upgrade>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let routes = probes::routes(Arc::new(Parent { access, upgrade }));
    tokio::spawn(probes::serve(listener, routes));
    Ok(())
}

impl Operated for Parent {
    /// Its children have theirs.
    fn openmetrics(&self) -> String {
        "# EOF\n".to_owned()
    }

    fn not_ready(&self) -> Vec<String> {
        Vec::new()
    }

    fn drain(&self) {
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            tracing::error!(%error, "no drain");
        }
    }

    fn upgrade(&self) -> Upgrading {
        self.upgrade.begin()
    }

    fn internal_access(&self) -> &InternalAccess {
        &self.access
    }

    fn refuse_page(&self) -> Response {
        (StatusCode::FORBIDDEN, "pages may not do this\n").into_response()
    }
}
