//! Serves the admin API: on the Unix socket in the data folder, and with a token over TCP if asked for.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

use crate::data_folder::{ADMIN_SOCKET, DataFolder};

pub(crate) struct AdminServer {
    tasks: Vec<JoinHandle<io::Result<()>>>,
    socket: std::path::PathBuf,
}

impl AdminServer {
    pub(crate) async fn start(
        data: &DataFolder,
        router: Router,
        tcp: Option<SocketAddr>,
    ) -> anyhow::Result<AdminServer> {
        let router = router.fallback(no_such_route);
        let socket = data.path().join(ADMIN_SOCKET);
        // The folder is locked by this process, so a socket in it is left over.
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the old {}", socket.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&socket).with_context(|| {
            format!("cannot listen on {} (its path may have 107 bytes; a shorter --data helps)", socket.display())
        })?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let mut tasks = vec![tokio::spawn(axum::serve(listener, router.clone()).into_future())];
        if let Some(address) = tcp {
            let token = data.admin_token()?;
            let guarded = router.layer(middleware::from_fn_with_state(token, require_token));
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen for the admin API on {address}"))?;
            tasks.push(tokio::spawn(axum::serve(listener, guarded).into_future()));
        }
        Ok(AdminServer { tasks, socket })
    }

    pub(crate) fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        // The next start removes it, too.
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn require_token(State(token): State<String>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if iothub_protocol::sas::same_secret(given, &token) {
        return next.run(request).await;
    }
    let error =
        json!({"error": "the admin API needs the header `Authorization: Bearer` with the token in admin.token"});
    (StatusCode::UNAUTHORIZED, axum::Json(error)).into_response()
}

async fn no_such_route() -> Response {
    (StatusCode::NOT_FOUND, axum::Json(json!({"error": "this latch has no such resource"}))).into_response()
}
