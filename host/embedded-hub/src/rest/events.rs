//! Events as lines of JSON, for the operator's socket. Azure has no such route; its events leave by AMQP.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Deserialize;
use serde_json::json;

use super::extract::Query;
use crate::driver::HubHandle;
use crate::events::EventLog;

/// Events of one line batch, so that a slow reader holds little.
const BATCH: usize = 100;

#[derive(Deserialize)]
pub(super) struct EventQuery {
    /// The first sequence number; absent: what comes from now on, or everything there is without `follow`.
    from: Option<u64>,
    /// Keep the answer open and send what comes.
    #[serde(default)]
    follow: bool,
    /// Only this device.
    device: Option<String>,
    /// Only these kinds, joined by commas.
    kind: Option<String>,
}

struct Cursor {
    events: EventLog,
    next: u64,
    follow: bool,
    device: Option<String>,
    kinds: Option<BTreeSet<String>>,
}

/// `GET /events`: one JSON object a line.
pub(super) async fn follow(State(hub): State<HubHandle>, Query(query): Query<EventQuery>) -> Response {
    let events = hub.events().clone();
    let next = query.from.unwrap_or(if query.follow { events.next() } else { 0 });
    let kinds = query.kind.map(|kinds| kinds.split(',').map(str::to_owned).collect());
    let cursor = Cursor { events, next, follow: query.follow, device: query.device, kinds };
    answer(stream::unfold(cursor, |mut cursor| async move { Some((cursor.lines().await?, cursor)) }))
}

/// An answer of lines that come bit by bit.
pub(super) fn answer(lines: impl Stream<Item = String> + Send + 'static) -> Response {
    let content_type = HeaderValue::from_static("application/x-ndjson");
    let lines = lines.map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(lines)).into_response()
}

impl Cursor {
    /// Some lines, at least one; `None` at the end.
    async fn lines(&mut self) -> Option<String> {
        loop {
            let page = self.events.page(self.next, BATCH);
            if page.events.is_empty() && page.missed == 0 {
                if !self.follow || !self.events.wait(self.next).await {
                    return None;
                }
                continue;
            }
            self.next = page.next;
            let mut lines = String::new();
            if page.missed > 0 {
                lines.push_str(&json!({"kind": "missed", "count": page.missed}).to_string());
                lines.push('\n');
            }
            for (sequence, event) in page.events {
                let wanted = self.device.as_ref().is_none_or(|device| device == event.device.as_str())
                    && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(event.kind_name()));
                if wanted {
                    lines.push_str(&event.to_json(sequence).to_string());
                    lines.push('\n');
                }
            }
            if !lines.is_empty() {
                return Some(lines);
            }
        }
    }
}
