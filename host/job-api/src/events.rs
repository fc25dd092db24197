//! Progress of jobs as server-sent events: `GET /jobs/v2/{id}/events`, and of all jobs `GET /jobs/v2/query/events`. Azure
//! has neither.
//!
//! An event is a job as it is, so that a reader who comes back, or reads slower than the job goes on, gets one event for
//! all that it has missed; its id is the number of the job's last change. Nobody waits for a reader. What changes is read
//! from the journal once for all streams ([`News`]), and a stream reads it itself only for what it has missed.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use job_engine::{JobEngine, Progress};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::JobApi;
use crate::extract::{Path, Query};
use crate::reply::{Refusal, header_text};

/// Streams at once.
const MAX_STREAMS: usize = 256;
/// Jobs that are read together.
const BATCH: usize = 100;
/// Between two looks at what has changed, so that a job that goes fast does not make many.
const PACE: Duration = Duration::from_millis(200);
/// Events that a stream may be behind, before it reads the journal for what it has missed.
const KEPT: usize = 256;
/// A stream that has nothing to say says so, that both ends notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What all streams share.
#[derive(Clone)]
pub(crate) struct Streams {
    free: Arc<Semaphore>,
    /// Streams end when the listener does; it waits for what is in hand.
    stopping: CancellationToken,
    /// There as long as a stream is.
    news: Arc<Mutex<Weak<News>>>,
}

impl Streams {
    pub(crate) fn new(stopping: CancellationToken) -> Streams {
        Streams { free: Arc::new(Semaphore::new(MAX_STREAMS)), stopping, news: Arc::default() }
    }

    /// What changes from now on, and perhaps once more what has after the change `seen`.
    fn listen(&self, jobs: &JobEngine, seen: u64) -> (Arc<News>, broadcast::Receiver<Event>) {
        let mut kept = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(news) = kept.upgrade()
            && let Some(events) = news.events.upgrade()
        {
            let received = events.subscribe();
            return (news, received);
        }
        let (events, received) = broadcast::channel(KEPT);
        let unheard = CancellationToken::new();
        let news = Arc::new(News { events: events.downgrade(), _unheard: unheard.clone().drop_guard() });
        tokio::spawn(tell(jobs.clone(), events, seen, unheard));
        *kept = Arc::downgrade(&news);
        (news, received)
    }
}

/// Where all streams hear what has changed.
struct News {
    /// Gone when nobody tells any more, as of an engine that has stopped.
    events: broadcast::WeakSender<Event>,
    /// Ends the telling with the last stream.
    _unheard: DropGuard,
}

/// What goes out to whoever follows the job.
#[derive(Clone)]
struct Event {
    change: u64,
    job: JobId,
    is_end: bool,
    frame: Arc<str>,
}

impl Event {
    fn of(progress: &Progress) -> Event {
        let is_end = progress.job.status.is_terminal();
        let kind = if is_end { "end" } else { "progress" };
        // JSON text holds no line end, so that it is one line.
        let frame = format!("id: {}\nevent: {kind}\ndata: {}\n\n", progress.change, progress.job.to_progress_json());
        Event { change: progress.change, job: progress.job.request.job_id.clone(), is_end, frame: frame.into() }
    }
}

/// Tell what has changed after the change `seen`, until nobody hears it or the engine has stopped.
async fn tell(jobs: JobEngine, events: broadcast::Sender<Event>, mut seen: u64, unheard: CancellationToken) {
    let mut commits = jobs.commits();
    commits.mark_changed();
    while changed(&mut commits, &unheard).await {
        let next = Instant::now() + PACE;
        loop {
            let Ok(found) = jobs.changed(seen, false, BATCH).await else { return };
            seen = found.last().map_or(seen, |last| last.change);
            for progress in &found {
                // Whoever was there may have gone.
                drop(events.send(Event::of(progress)));
            }
            if found.len() < BATCH {
                break;
            }
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = unheard.cancelled() => return,
        }
    }
}

/// Wait for a change; `false` if nothing more is to be told.
async fn changed(commits: &mut watch::Receiver<u64>, unheard: &CancellationToken) -> bool {
    tokio::select! {
        changed = commits.changed() => changed.is_ok(),
        () = unheard.cancelled() => false,
    }
}

#[derive(Deserialize)]
pub(crate) struct EventQuery {
    /// Go on after the event of this id, as the header `Last-Event-ID`.
    after: Option<String>,
}

pub(crate) async fn of_job(
    State(state): State<JobApi>,
    Path(id): Path,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let jobs = state.authorize(&headers)?;
    let id = JobId::parse(&id)?;
    let now = jobs.progress(&id).await?;
    // A place that is yet to come is one in another journal.
    let seen = place(&query, &headers)?.filter(|seen| *seen <= now.change);
    if now.job.status.is_terminal() && seen == Some(now.change) {
        // A client of streams comes back after each end, unless it is told that there is nothing more.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    // Before its first change there is none, and a job has one from its creation.
    stream(&state, jobs, Follows::One(id), seen.unwrap_or(0)).await
}

/// A reader that begins is told of the jobs that have not ended, then of every job that changes.
pub(crate) async fn of_all(
    State(state): State<JobApi>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let jobs = state.authorize(&headers)?;
    let last = jobs.last_change().await?;
    match place(&query, &headers)?.filter(|seen| *seen <= last) {
        Some(seen) => stream(&state, jobs, Follows::All, seen).await,
        None => stream(&state, jobs, Follows::UnfinishedUntil(last), 0).await,
    }
}

/// Up to which change a reader has seen.
fn place(query: &EventQuery, headers: &HeaderMap) -> Result<Option<u64>, HubError> {
    let given = header_text(headers, &LAST_EVENT_ID).or(query.after.as_deref());
    let wrong = |text: &str| HubError::new(ErrorCode::ArgumentInvalid, format!("{text:?} is no id of an event"));
    given.map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

async fn stream(state: &JobApi, jobs: JobEngine, follows: Follows, seen: u64) -> Result<Response, Refusal> {
    let streams = &state.streams;
    let permit = streams.free.clone().try_acquire_owned().map_err(|_| {
        let text = format!("{MAX_STREAMS} streams of jobs are open already; end one of them, or ask now and then");
        HubError::new(ErrorCode::ThrottlingException, text)
    })?;
    // What changes between this and the first look at the journal is told twice, and passed over the second time.
    let last = jobs.last_change().await?;
    let (news, events) = streams.listen(&jobs, last);
    let feed = Feed {
        jobs,
        events,
        follows,
        seen,
        is_behind: true,
        began: false,
        has_ended: false,
        heartbeat: Instant::now() + HEARTBEAT,
        stopping: streams.stopping.clone(),
        _news: news,
        _permit: permit,
    };
    let frames = stream::unfold(feed, |mut feed| async move { Some((Ok::<_, Infallible>(feed.next().await?), feed)) });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(frames)).into_response())
}

enum Follows {
    One(JobId),
    All,
    /// Those that have not ended, as they are at that change; then all.
    UnfinishedUntil(u64),
}

/// A reader's place.
struct Feed {
    jobs: JobEngine,
    events: broadcast::Receiver<Event>,
    follows: Follows,
    /// Up to which change it has been told.
    seen: u64,
    /// There may be something in the journal that it has not been told.
    is_behind: bool,
    began: bool,
    /// Its job has, and it has been told so.
    has_ended: bool,
    /// When it is told that there is nothing to tell.
    heartbeat: Instant,
    stopping: CancellationToken,
    _news: Arc<News>,
    _permit: OwnedSemaphorePermit,
}

impl Feed {
    /// What goes out next; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.began, true) {
            // A client sees at once that it is connected, and comes back a second after it is not.
            return Some(": progress of jobs\nretry: 1000\n\n".to_owned());
        }
        let frames = loop {
            if self.has_ended || self.stopping.is_cancelled() {
                return None;
            }
            let found = match self.is_behind {
                true => self.missed().await.ok()?,
                false => tokio::select! {
                    event = self.events.recv() => match event {
                        Ok(event) => vec![event],
                        Err(RecvError::Lagged(_)) => {
                            self.is_behind = true;
                            continue;
                        }
                        Err(RecvError::Closed) => return None,
                    },
                    () = sleep_until(self.heartbeat) => break ": heartbeat\n\n".to_owned(),
                    () = self.stopping.cancelled() => return None,
                },
            };
            let frames: String = found.iter().filter_map(|event| self.take(event)).collect();
            if !frames.is_empty() {
                break frames;
            }
        };
        self.heartbeat = Instant::now() + HEARTBEAT;
        Some(frames)
    }

    /// What it has not been told yet, some of it at a time.
    async fn missed(&mut self) -> Result<Vec<Event>, HubError> {
        let found = match &self.follows {
            Follows::One(id) => {
                self.is_behind = false;
                vec![self.jobs.progress(id).await?]
            }
            Follows::All => {
                let found = self.jobs.changed(self.seen, false, BATCH).await?;
                self.is_behind = found.len() == BATCH;
                found
            }
            Follows::UnfinishedUntil(last) => {
                let last = *last;
                let mut found = self.jobs.changed(self.seen, true, BATCH).await?;
                // One that has changed since is told of with the others.
                found.retain(|job| job.change <= last);
                if found.is_empty() {
                    (self.follows, self.seen) = (Follows::All, last);
                }
                found
            }
        };
        Ok(found.iter().map(Event::of).collect())
    }

    /// What goes out of an event, if it is news to this reader.
    fn take<'a>(&mut self, event: &'a Event) -> Option<&'a str> {
        let follows_one = match &self.follows {
            Follows::One(id) if *id != event.job => return None,
            Follows::One(_) => true,
            Follows::All | Follows::UnfinishedUntil(_) => false,
        };
        if event.change <= self.seen {
            return None;
        }
        self.seen = event.change;
        self.has_ended = follows_one && event.is_end;
        Some(&event.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_number() {
        let query = |after: Option<&str>| EventQuery { after: after.map(str::to_owned) };
        let headers = HeaderMap::from_iter([(LAST_EVENT_ID, HeaderValue::from_static("7"))]);
        assert_eq!(place(&query(Some("3")), &headers).ok(), Some(Some(7)), "the header counts");
        assert_eq!(place(&query(Some("3")), &HeaderMap::new()).ok(), Some(Some(3)));
        assert_eq!(place(&query(None), &HeaderMap::new()).ok(), Some(None));
        let refused = place(&query(Some("x")), &HeaderMap::new()).map_err(|error| error.code).err();
        assert_eq!(refused, Some(ErrorCode::ArgumentInvalid));
    }
}
