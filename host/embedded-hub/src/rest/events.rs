//! Events for those who follow: as a stream of server-sent events for back ends and browsers, and as lines of JSON for
//! the operator's socket. Azure has neither; there, events leave by AMQP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream, StreamExt as _};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::time;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::RestState;
use super::extract::Query;
use super::reply::{Refusal, header_text};
use crate::driver::HubHandle;
use crate::events::{EventFilter, EventLog, HubEvent};
use crate::policy::Rights;

/// Events that are looked at together.
const BATCH: usize = 100;
/// A stream that has nothing to say says so, that both ends notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Streams at once: each reader costs a look at every event.
const MAX_STREAMS: usize = 256;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What all streams of a hub share.
#[derive(Clone)]
pub(crate) struct Streams {
    free: Arc<Semaphore>,
    /// Streams end when the listener does; it waits for what is in hand.
    stopping: CancellationToken,
}

impl Streams {
    pub(crate) fn new(stopping: CancellationToken) -> Streams {
        Streams { free: Arc::new(Semaphore::new(MAX_STREAMS)), stopping }
    }

    /// When streams end.
    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }
}

#[derive(Deserialize)]
pub(super) struct EventQuery {
    /// Keep the answer open and send what comes. A stream always does.
    #[serde(default)]
    follow: bool,
    /// Go on after the event of this id, as the header `Last-Event-ID`.
    after: Option<String>,
    /// Also what there is from this time on.
    since: Option<String>,
    /// Only of devices whose ids this covers, with `*` and `?`.
    device: Option<String>,
    /// Only these kinds or categories, joined by commas.
    kind: Option<String>,
    /// For clients that cannot send a header, as browsers' `EventSource`: what would stand in `Authorization`.
    token: Option<String>,
}

/// `GET /messages/events`: server-sent events, for the right ServiceConnect.
pub(super) async fn stream(
    State(state): State<RestState>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    match &query.token {
        Some(token) => state.authorize_token(token, Rights::SERVICE_CONNECT)?,
        None => state.authorize(&headers, Rights::SERVICE_CONNECT)?,
    };
    let Streams { free, stopping } = state.streams;
    let permit = free.try_acquire_owned().map_err(|_| {
        let text = format!("{MAX_STREAMS} streams of events are open already");
        HubError::new(ErrorCode::ThrottlingException, text)
    })?;
    let after = header_text(&headers, &LAST_EVENT_ID).map(str::to_owned).or(query.after);
    let start = Start { after, since: query.since, follow: true };
    let cursor = Cursor::begin(state.hub.events(), start, query.device, query.kind.as_deref())?;
    let state = SseState { cursor, stopping, began: false, _permit: permit };
    let frames = stream::unfold(state, |mut state| async move { Some((state.frames().await?, state)) });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Pages may read it wherever they come from: what lets them is the token, which no browser adds by itself.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ];
    Ok((headers, Body::from_stream(frames.map(Ok::<_, Infallible>))).into_response())
}

struct SseState {
    cursor: Cursor,
    stopping: CancellationToken,
    began: bool,
    _permit: OwnedSemaphorePermit,
}

impl SseState {
    /// What goes out next; `None` at the end.
    async fn frames(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.began, true) {
            // A client sees at once that it is connected, and comes back a second after it is not.
            return Some(": events of this hub\nretry: 1000\n\n".to_owned());
        }
        let next = tokio::select! {
            items = self.cursor.items() => items.map(|items| self.cursor.write(&items, Format::Sse)),
            // With an id but no data: nothing is dispatched, and a reader whose filter lets little through does not
            // come back to where that was.
            () = tokio::time::sleep(HEARTBEAT) => Some(": heartbeat\n".to_owned() + &self.cursor.place() + "\n"),
            () = self.stopping.cancelled() => None,
        };
        next
    }
}

/// `GET /events` of the operator's socket: one JSON object a line.
pub(super) async fn follow(
    State(hub): State<HubHandle>,
    Query(query): Query<EventQuery>,
) -> Result<Response, HubError> {
    let start = Start { after: query.after, since: query.since, follow: query.follow };
    let cursor = Cursor::begin(hub.events(), start, query.device, query.kind.as_deref())?;
    Ok(answer(stream::unfold(cursor, |mut cursor| async move {
        let items = cursor.items().await?;
        Some((cursor.write(&items, Format::Lines), cursor))
    })))
}

/// An answer of lines that come bit by bit.
pub(super) fn answer(lines: impl Stream<Item = String> + Send + 'static) -> Response {
    let content_type = HeaderValue::from_static("application/x-ndjson");
    let lines = lines.map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(lines)).into_response()
}

/// Where a reader begins.
struct Start {
    after: Option<String>,
    since: Option<String>,
    follow: bool,
}

#[derive(Clone, Copy)]
enum Format {
    Lines,
    Sse,
}

enum Item {
    /// What the reader cannot have any more: how many events of any kind and device, if that is known, and why.
    Gap {
        count: Option<u64>,
        reason: &'static str,
    },
    Event(u64, Arc<HubEvent>),
}

/// A reader's place.
struct Cursor {
    log: EventLog,
    next: u64,
    follow: bool,
    filter: EventFilter,
    /// To be told before anything else.
    gap: Option<Item>,
}

impl Cursor {
    fn begin(log: &EventLog, start: Start, device: Option<String>, kinds: Option<&str>) -> Result<Cursor, HubError> {
        let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
        let since = match &start.since {
            None => None,
            Some(text) => Some(time::parse(text).ok_or_else(|| {
                invalid(format!("since={text:?} is no time with a zone, such as 2026-12-24T18:00:00Z"))
            })?),
        };
        let filter = EventFilter::new(device, kinds, since).map_err(|e| invalid(e.to_string()))?;
        let mut cursor = Cursor { log: log.clone(), next: 0, follow: start.follow, filter, gap: None };
        match start.after {
            Some(id) => {
                let resumed = log.after(&id).ok_or_else(|| invalid(format!("{id:?} is no id of an event")))?;
                cursor.next = resumed.from;
                if resumed.other_ring {
                    let reason = "the hub was restarted: what it had from before is gone";
                    cursor.gap = Some(Item::Gap { count: None, reason });
                }
            }
            None if since.is_some() => {
                let first = log.page(0, 1);
                // Those that are gone may have been from that time or not.
                if first.missed > 0 && first.events.first().is_some_and(|(_, event)| Some(event.time) > since) {
                    let reason = "events from the beginning of that time are not kept any more";
                    cursor.gap = Some(Item::Gap { count: None, reason });
                }
                cursor.next = first.next.saturating_sub(first.events.len() as u64);
            }
            None if start.follow => cursor.next = log.next(),
            None => {}
        }
        Ok(cursor)
    }

    /// Some items, at least one; `None` at the end.
    async fn items(&mut self) -> Option<Vec<Item>> {
        if let Some(gap) = self.gap.take() {
            return Some(vec![gap]);
        }
        loop {
            let page = self.log.page(self.next, BATCH);
            if page.events.is_empty() && page.missed == 0 {
                if !self.follow || !self.log.wait(self.next).await {
                    return None;
                }
                continue;
            }
            self.next = page.next;
            let reason = "they came faster than they were read, and only the latest are kept";
            let gap = (page.missed > 0).then_some(Item::Gap { count: Some(page.missed), reason });
            let wanted = page.events.into_iter().filter(|(_, event)| self.filter.wants(event));
            let items: Vec<Item> =
                gap.into_iter().chain(wanted.map(|(sequence, event)| Item::Event(sequence, event))).collect();
            if !items.is_empty() {
                return Some(items);
            }
        }
    }

    /// The line that says up to where this reader has seen; none at the ring's beginning.
    fn place(&self) -> String {
        self.next.checked_sub(1).map(|last| format!("id: {}\n", self.log.id(last))).unwrap_or_default()
    }

    fn write(&self, items: &[Item], format: Format) -> String {
        let mut text = String::new();
        for item in items {
            let (id, document) = match item {
                Item::Gap { count, reason } => (None, json!({"kind": "gap", "count": count, "reason": reason})),
                Item::Event(sequence, event) => (Some(*sequence), self.log.to_json(*sequence, event)),
            };
            self.write_one(&mut text, id, &document, format);
        }
        text
    }

    fn write_one(&self, text: &mut String, sequence: Option<u64>, document: &Value, format: Format) {
        // JSON text holds no line end, so that it is one line in either format.
        match (format, sequence) {
            (Format::Lines, _) => text.push_str(&format!("{document}\n")),
            (Format::Sse, None) => text.push_str(&format!("event: gap\ndata: {document}\n\n")),
            (Format::Sse, Some(sequence)) => {
                text.push_str(&format!("id: {}\ndata: {document}\n\n", self.log.id(sequence)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};
    use iothub_protocol::address::Address;

    use super::*;

    fn log(count: usize) -> EventLog {
        let log = EventLog::new();
        (0..count).for_each(|second| log.push(event(second)));
        log
    }

    fn at(second: usize) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(second as i64)
    }

    fn event(second: usize) -> HubEvent {
        HubEvent::connected(Address::parse(&format!("d{}", second % 2)).expect("an address"), at(second))
    }

    fn start(after: Option<String>, since: Option<&str>, follow: bool) -> Start {
        Start { after, since: since.map(str::to_owned), follow }
    }

    /// The numbers of what comes, and gaps by their count.
    async fn read(cursor: &mut Cursor) -> Vec<Result<u64, Option<u64>>> {
        let items = cursor.items().await.unwrap_or_default();
        let shown = items.iter().map(|item| match item {
            Item::Gap { count, .. } => Err(*count),
            Item::Event(sequence, _) => Ok(*sequence),
        });
        shown.collect()
    }

    #[tokio::test]
    async fn a_reader_begins_where_it_asked() {
        let log = log(4);
        for (start, expected) in [
            (start(None, None, false), vec![Ok(0), Ok(1), Ok(2), Ok(3)]),
            (start(Some(log.id(2)), None, true), vec![Ok(3)]),
            (start(None, Some("1970-01-01T00:00:02Z"), true), vec![Ok(2), Ok(3)]),
            (start(Some("1f.7".into()), None, true), vec![Err(None)]),
            (start(Some("1f.7".into()), None, false), vec![Err(None)]),
        ] {
            let mut cursor = Cursor::begin(&log, start, None, None).expect("a cursor");
            assert_eq!(read(&mut cursor).await, expected);
        }
        let mut cursor = Cursor::begin(&log, start(None, None, true), None, None).expect("a cursor");
        log.push(event(4));
        assert_eq!(read(&mut cursor).await, [Ok(4)], "from now on");
        let mut cursor = Cursor::begin(&log, start(None, None, false), Some("d?".into()), Some("twin")).expect("one");
        assert_eq!(read(&mut cursor).await, []);
        let mut cursor = Cursor::begin(&log, start(None, None, false), Some("d1".into()), None).expect("a cursor");
        assert_eq!(read(&mut cursor).await, [Ok(1), Ok(3)]);
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed() {
        let log = log(1);
        let mut cursor = Cursor::begin(&log, start(None, None, false), None, None).expect("a cursor");
        (0..10_004).for_each(|second| log.push(event(second)));
        let first = read(&mut cursor).await;
        assert_eq!((first[0], first[1], first.len()), (Err(Some(5)), Ok(5), BATCH + 1));
        let mut since =
            Cursor::begin(&log, start(None, Some("1970-01-01T00:00:00Z"), false), None, None).expect("a cursor");
        assert_eq!(read(&mut since).await, [Err(None)], "how many of them were from that time is not known");
        assert_eq!(read(&mut since).await[0], Ok(5));
    }

    #[tokio::test]
    async fn what_is_no_place_or_filter_is_refused() {
        let log = log(1);
        for (start, device, kind) in [
            (start(Some("x".into()), None, true), None, None),
            (start(None, Some("yesterday"), true), None, None),
            (start(None, None, true), Some("*".repeat(600)), None),
            (start(None, None, true), None, Some("twins")),
        ] {
            let refused = Cursor::begin(&log, start, device, kind).err().map(|error| error.code);
            assert_eq!(refused, Some(ErrorCode::ArgumentInvalid));
        }
    }

    #[tokio::test]
    async fn a_frame_holds_an_event_and_its_id() {
        let log = log(1);
        let mut cursor = Cursor::begin(&log, start(Some("1f.7".into()), None, true), None, None).expect("a cursor");
        assert_eq!(cursor.place(), "");
        let gap = cursor.items().await.expect("a gap");
        let text = cursor.write(&gap, Format::Sse);
        assert!(text.starts_with("event: gap\ndata: {\"count\":null,") && text.ends_with("}\n\n"), "{text}");
        let items = cursor.items().await.expect("an event");
        let document = log.to_json(0, &event(0));
        assert_eq!(cursor.write(&items, Format::Sse), format!("id: {}\ndata: {document}\n\n", log.id(0)));
        assert_eq!(cursor.write(&items, Format::Lines), format!("{document}\n"));
        assert_eq!(cursor.place(), format!("id: {}\n", log.id(0)));
    }
}
