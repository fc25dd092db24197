//! The way to the latch that runs on a data folder: HTTP over its Unix socket.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::exit::Unreachable;

/// Longest line of an answer that is read line by line: an event with the largest message, escaped.
const MAX_LINE: usize = 4 * 1024 * 1024;

pub(crate) struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    pub(crate) fn new(socket: PathBuf) -> AdminClient {
        AdminClient { socket }
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        read(self.send(Method::GET, path, Bytes::new()).await?).await
    }

    pub(crate) async fn put(&self, path: &str, body: Vec<u8>) -> anyhow::Result<Value> {
        read(self.send(Method::PUT, path, body.into()).await?).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        read(self.send(Method::POST, path, body.to_string().into()).await?).await
    }

    pub(crate) async fn post_lines(&self, path: &str, lines: Vec<u8>) -> anyhow::Result<Value> {
        read(self.send(Method::POST, path, lines.into()).await?).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        read(self.send(Method::DELETE, path, Bytes::new()).await?).await
    }

    /// Call `each` with each line of an answer, as it comes.
    pub(crate) async fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        if response.status() != StatusCode::OK {
            read(response).await?;
            return Ok(());
        }
        let mut body = response.into_body();
        let mut held = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context("the running latch broke off")?.into_data() else { continue };
            held.extend_from_slice(&data);
            while let Some(end) = held.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = held.drain(..=end).collect();
                each(String::from_utf8_lossy(&line[..end]).as_ref())?;
            }
            if held.len() > MAX_LINE {
                bail!("the running latch sent a line of more than {MAX_LINE} bytes");
            }
        }
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            Unreachable(format!(
                "no latch runs here: cannot connect to {} ({error})\nhint: start `latch up`, or name its data folder with \
                 --data",
                self.socket.display()
            ))
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the admin connection ended");
            }
        });
        // Only components are put.
        let content_type = if method == Method::PUT { "application/wasm" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("host", "latch");
        let request = request.header("content-type", content_type).body(Full::new(body))?;
        sender.send_request(request).await.context("the running latch does not answer")
    }
}

/// The JSON of an answer; the text of a refusal as an error.
async fn read(response: Response<Incoming>) -> anyhow::Result<Value> {
    let status = response.status();
    let body = response.into_body().collect().await.context("the running latch broke off")?.to_bytes();
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    match value["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => bail!("the running latch answered {status}"),
    }
}
