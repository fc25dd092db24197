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
        let mut lines = self.stream(path).await?;
        while let Some(line) = lines.next().await? {
            each(&line)?;
        }
        Ok(())
    }

    /// Ask for an answer that comes line by line.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Lines> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        if response.status() != StatusCode::OK {
            // What is no refusal has no lines either.
            read(response).await?;
            bail!("the running latch did not answer with lines");
        }
        Ok(Lines { body: response.into_body(), held: Vec::new() })
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
        // Components and certificates are put.
        let content_type = if method == Method::PUT { "application/octet-stream" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("host", "latch");
        let request = request.header("content-type", content_type).body(Full::new(body))?;
        let sent = sender.send_request(request).await;
        Ok(sent.map_err(|error| Unreachable(format!("the running latch does not answer ({error})")))?)
    }
}

/// An answer that comes line by line.
pub(crate) struct Lines {
    body: Incoming,
    held: Vec<u8>,
}

impl Lines {
    /// The next line; `None` at the answer's end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.held.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.held.len() > MAX_LINE {
                bail!("the running latch sent a line of more than {MAX_LINE} bytes");
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| Unreachable(format!("the running latch broke off ({error})")))?;
            if let Ok(data) = frame.into_data() {
                self.held.extend_from_slice(&data);
            }
        }
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
