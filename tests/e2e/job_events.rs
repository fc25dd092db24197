//! Jobs as those see them who follow them: events of their progress, and the commands that show it.

use std::path::Path;
use std::time::Duration;

use chrono::TimeDelta;
use iothub_protocol::id::JobId;
use iothub_service::{JobEvents, ServiceClient, ServiceError};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::back_end;
use crate::harness::{FREE_PORTS, Latch, Process, Stream, latch, latch_command, latch_json, latch_ok};
use crate::rest::Rest;

/// Until a change of a job has come to whoever follows it.
const EVENT_BOUND: Duration = Duration::from_secs(30);
/// Streams that a hub has at once.
const MAX_STREAMS: usize = 256;
const LATER: &[&str] = &["--query", "*", "--start", "2100-01-01T00:00:00Z"];

/// A client of a hub's streams.
struct Reader {
    runtime: Runtime,
    http: Client,
    base: String,
    token: String,
}

/// Events of a stream.
struct Events<'a> {
    reader: &'a Reader,
    response: Response,
    text: String,
}

/// Id, kind and data.
type Event = (u64, String, Value);

impl Reader {
    fn of(data: &Path) -> Reader {
        let rest = Rest::of(data);
        let tls = ClientConfig::clone(&back_end::tls(data));
        let http = Client::builder().tls_backend_preconfigured(tls).build().expect("the TLS settings are usable");
        Reader {
            runtime: Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread can be used"),
            http,
            base: format!("https://{}", rest.owner.host.authority()),
            token: rest.token(&rest.owner, TimeDelta::hours(1)),
        }
    }

    fn get(&self, target: &str) -> RequestBuilder {
        self.http.get(format!("{}{target}", self.base))
    }

    fn send(&self, request: RequestBuilder) -> Response {
        let sent = async { tokio::time::timeout(EVENT_BOUND, request.send()).await };
        self.runtime.block_on(sent).expect("an answer in time").expect("an answer")
    }

    fn ask(&self, target: &str, last: Option<u64>) -> Response {
        let request = self.get(target).header("authorization", &self.token);
        self.send(match last {
            Some(id) => request.header("last-event-id", id),
            None => request,
        })
    }

    fn open(&self, target: &str, last: Option<u64>) -> Events<'_> {
        let response = self.ask(target, last);
        assert_eq!(response.status(), StatusCode::OK, "{target}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { reader: self, response, text: String::new() }
    }
}

impl Events<'_> {
    /// The next event; `None` at the end.
    fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                if let Some(data) = field("data") {
                    let id = field("id").and_then(|id| id.parse().ok()).expect("a number");
                    let data = serde_json::from_str(data).expect("JSON");
                    return Some((id, field("event").expect("a kind").to_owned(), data));
                }
            }
            let chunk = async { tokio::time::timeout(EVENT_BOUND, self.response.chunk()).await };
            let chunk = self.reader.runtime.block_on(chunk).expect("something in time");
            self.text.push_str(&String::from_utf8_lossy(&chunk.expect("a stream in good order")?));
        }
    }

    /// The first event for which `fits` holds.
    fn find(&mut self, fits: impl Fn(&Value) -> bool) -> Event {
        loop {
            let event = self.next().expect("the stream goes on");
            if fits(&event.2) {
                return event;
            }
        }
    }
}

fn is_paused(job: &Value) -> bool {
    job["latch"]["progress"]["paused"]["reason"] == "not now"
}

#[test]
fn progress_is_a_stream_that_can_be_taken_up_again() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    latch_ok(data, &[&["job", "method", "lockDoor", "--id", "one"][..], LATER].concat());
    let reader = Reader::of(data);
    let mut one = reader.open("/jobs/v2/one/events", None);
    let (first, kind, job) = one.find(|job| job["status"] == "scheduled");
    assert_eq!((&*kind, &job["jobId"]), ("progress", &json!("one")), "{job:#}");
    assert!(job["cloudToDeviceMethod"].is_null(), "what it does is no progress: {job:#}");

    let mut all = reader.open("/jobs/v2/query/events", None);
    assert_eq!(all.next().map(|(id, _, job)| (id, job["jobId"].clone())), Some((first, json!("one"))));
    latch_ok(data, &["job", "pause", "one", "--reason", "not now"]);
    let paused = one.find(is_paused);
    assert!(paused.0 > first);
    assert_eq!(all.find(is_paused), paused);
    latch_ok(data, &[&["job", "twin", "--desired", "{}", "--id", "two"][..], LATER].concat());
    let two = all.find(|job| job["jobId"] == "two" && job["status"] == "scheduled");
    assert!(two.0 > paused.0);

    // A stop ends both, and is not held up by them.
    let ports = hub.same_ports();
    assert!(hub.stop().success());
    assert_eq!(all.next(), None);
    assert_eq!(one.next(), None);
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let _hub = Latch::start(data, &[&["hub"], &ports[..]].concat());
    let mut one = reader.open("/jobs/v2/one/events", Some(paused.0));
    let mut all = reader.open("/jobs/v2/query/events", Some(paused.0));
    assert_eq!(all.next(), Some(two), "what it has not seen, and nothing else");
    latch_ok(data, &["job", "cancel", "one"]);
    let (last, kind, job) = one.find(|job| job["status"] == "cancelled");
    assert!(kind == "end" && last > paused.0, "{kind} {last}");
    assert_eq!(one.next(), None, "nothing comes after a job's end");
    assert_eq!(all.find(|job| job["status"] == "cancelled"), (last, "end".to_owned(), job));
    assert_eq!(reader.ask("/jobs/v2/one/events", Some(last)).status(), StatusCode::NO_CONTENT);
    // A place in another journal is none in this one.
    let mut other = reader.open("/jobs/v2/one/events", Some(last + 1_000_000));
    assert_eq!(other.next().map(|(id, kind, _)| (id, kind)), Some((last, "end".to_owned())));

    for (target, status) in [
        ("/jobs/v2/none/events", StatusCode::NOT_FOUND),
        ("/jobs/v2/one/events?after=x", StatusCode::BAD_REQUEST),
        ("/jobs/v2/query/events?after=-1", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(reader.ask(target, None).status(), status, "{target}");
    }
    // A token in an address would be in every log on the way.
    let token = reader.token.replace(' ', "%20");
    for target in ["/jobs/v2/one/events".to_owned(), format!("/jobs/v2/query/events?token={token}")] {
        assert_eq!(reader.send(reader.get(&target)).status(), StatusCode::UNAUTHORIZED, "{target}");
    }
}

#[test]
fn readers_who_do_not_read_hold_nobody_up() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "100"], FREE_PORTS].concat());
    latch_ok(data, &[&["job", "method", "lockDoor", "--id", "later"][..], LATER].concat());
    let reader = Reader::of(data);
    let idle: Vec<_> = (0..MAX_STREAMS).map(|_| reader.open("/jobs/v2/query/events", None)).collect();
    let refused = reader.ask("/jobs/v2/later/events", None);
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);

    // Nobody is connected, so that each device fails; whoever finds no stream free looks at the job now and then.
    let ended = latch(data, &["job", "method", "lockDoor", "--query", "*", "--id", "j", "--wait"]);
    let expected = "j completed: 0 of 100 devices succeeded, 100 failed: 100 offline\n";
    assert_eq!((ended.code, &*ended.stdout), (Some(4), expected), "{ended:?}");
    let mut idle = idle;
    let mut last = idle.pop().expect("a stream");
    assert_eq!(last.find(|job| job["jobId"] == "j" && job["status"] == "completed").1, "end");
    drop((idle, last));
    assert_eq!(reader.open("/jobs/v2/j/events", None).next().map(|(_, kind, _)| kind), Some("end".to_owned()));
}

#[test]
fn whoever_watches_a_job_outlasts_its_hub_and_can_leave() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    latch_ok(data, &[&["job", "method", "lockDoor", "--id", "one"][..], LATER].concat());
    let watch = || Process::spawn("watch", &mut latch_command(data, &["job", "watch", "one", "--json"]));
    let (mut stays, mut leaves) = (watch(), watch());
    for watcher in [&stays, &leaves] {
        let line = watcher.wait_for_line("{", EVENT_BOUND);
        let job: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(job["jobId"], json!("one"));
    }
    leaves.terminate();
    assert_eq!(leaves.wait(EVENT_BOUND).code(), Some(1));
    assert!(leaves.transcript().contains("the job one goes on"), "{}", leaves.transcript());

    let ports = hub.same_ports();
    hub.kill();
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let _hub = Latch::start(data, &[&["hub"], &ports[..]].concat());
    latch_ok(data, &["job", "cancel", "one"]);
    assert_eq!(stays.wait(EVENT_BOUND).code(), Some(4), "{}", stays.transcript());
    let said = stays.said(Stream::Stdout);
    let last: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    assert_eq!(
        (&last["status"], &last["cloudToDeviceMethod"]["methodName"]),
        (&json!("cancelled"), &json!("lockDoor"))
    );
}

#[test]
fn a_host_that_runs_jobs_tells_of_them_over_its_socket() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [hub_data, data] = folders.each_ref().map(|folder| folder.path());
    let _hub = Latch::start(hub_data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let [connection, ca] = ["service.connstr", "ca.pem"].map(|name| hub_data.join(name));
    let [connection, ca] = [&connection, &ca].map(|path| path.to_str().expect("a readable name"));
    let host = Latch::start(data, &["run", "--jobs", "--hub", connection, "--ca", ca]);
    let create = ["job", "method", "lockDoor", "--id", "one", "--engine", "latch", "--hub", connection, "--ca", ca];
    latch_json(data, &[&create[..], LATER].concat());
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread can be used");
    let service = ServiceClient::over_socket(&data.join("admin.sock"), "the host").expect("a client");
    let next = |events: &mut JobEvents| {
        let next = async { tokio::time::timeout(EVENT_BOUND, events.next()).await };
        runtime.block_on(next).expect("something in time")
    };
    let id = JobId::parse("one").expect("an id");
    let events = runtime.block_on(service.job_events(&id, None)).expect("a stream");
    let mut events = events.expect("the job goes on");
    let place = loop {
        let found: Result<Option<(Option<String>, Value)>, ServiceError> = next(&mut events);
        let (place, job) = found.expect("an event").expect("no end");
        if job["status"] == "scheduled" {
            break place;
        }
    };
    // Its stop ends the stream.
    assert!(host.stop().success());
    assert_eq!(next(&mut events).ok().flatten(), None);
    let _host = Latch::start(data, &["run", "--jobs", "--hub", connection, "--ca", ca]);
    let events = runtime.block_on(service.job_events(&id, place.as_deref())).expect("a stream");
    let mut events = events.expect("the job goes on");
    latch_json(data, &["job", "cancel", "one"]);
    let (_, job) = next(&mut events).expect("an event").expect("no end");
    assert_eq!(job["status"], "cancelled", "what it has seen does not come again: {job:#}");
}
