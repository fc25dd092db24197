//! Streams of jobs, read by somebody who is slower than the jobs.

mod support;

use std::collections::BTreeSet;

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use iothub_protocol::id::JobId;
use iothub_protocol::job::{DEFAULT_MAX_EXECUTION, JobAction, JobRequest, TwinUpdate};
use job_api::JobApi;
use job_engine::{Command, JobEngine};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::timeout;

use support::{PATIENCE, Service};

/// More than a stream may be behind.
const JOBS: usize = 600;
/// Bytes that wait on each side of a connection.
const WAITING: usize = 8192;

fn id(number: usize) -> JobId {
    JobId::parse(&format!("job-{number:04}")).expect("an id")
}

fn later(number: usize) -> JobRequest {
    JobRequest {
        job_id: id(number),
        action: JobAction::UpdateTwin(TwinUpdate { tags: None, desired: Some(Default::default()) }),
        query_condition: "*".to_owned(),
        start_time: Some(Utc::now() + TimeDelta::days(1)),
        max_execution_time_in_seconds: DEFAULT_MAX_EXECUTION,
        policy: None,
        targets: None,
        then: Vec::new(),
        recurrence: None,
    }
}

/// The answer to a GET of `target`, as far as anybody reads it.
async fn open(jobs: &JobEngine, target: &str) -> DuplexStream {
    let (mut client, server) = duplex(WAITING);
    let router = job_api::router::<()>(JobApi::new(jobs.clone(), |_| Ok("reader".to_owned())));
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    tokio::spawn(http.max_buf_size(WAITING).serve_connection(TokioIo::new(server), service));
    client.write_all(format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await.expect("a server");
    client
}

/// Reads a stream until `is_enough` of the events: ids and jobs.
async fn read(stream: &mut DuplexStream, is_enough: impl Fn(&[(u64, Value)]) -> bool) -> Vec<(u64, Value)> {
    timeout(PATIENCE, read_on(stream, is_enough)).await.expect("enough in time")
}

async fn read_on(stream: &mut DuplexStream, is_enough: impl Fn(&[(u64, Value)]) -> bool) -> Vec<(u64, Value)> {
    let (mut text, mut events, mut bytes) = (String::new(), Vec::new(), [0; 1024]);
    while !is_enough(&events) {
        let read = stream.read(&mut bytes).await.expect("a stream");
        assert!(read > 0, "the stream has ended after {} events", events.len());
        text.push_str(std::str::from_utf8(&bytes[..read]).expect("no other than ASCII"));
        // Lines of chunks' sizes stand between events, and before an id at most.
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            if let (Some(id), Some(data)) = (field("id: "), field("data: ")) {
                events.push((id.parse().expect("a number"), serde_json::from_str(data).expect("JSON")));
            }
            text = rest.to_owned();
        }
    }
    events
}

#[tokio::test]
async fn a_reader_who_falls_behind_misses_no_job_and_sees_each_as_it_is() {
    let service = Service::new().await;
    let jobs = &service.hub.jobs;
    jobs.create(later(0)).await.expect("a new job");
    let mut all = open(jobs, "/jobs/v2/query/events").await;
    let mut one = open(jobs, &format!("/jobs/v2/{}/events", id(0))).await;
    let begun = |events: &[(u64, Value)]| events.iter().any(|(_, job)| job["jobId"] == json!(id(0)));
    for stream in [&mut all, &mut one] {
        read(stream, begun).await;
    }

    // Nobody reads, and the engine goes on.
    for created in join_all((1..JOBS).map(|number| jobs.create(later(number)))).await {
        created.expect("a new job");
    }
    let commands = [Command::Pause { reason: String::new() }, Command::Resume];
    for command in commands.iter().cycle().take(40).chain([&Command::Cancel]) {
        jobs.command(&id(0), command.clone()).await.expect("an obedient engine");
    }
    let is_whole = |events: &[(u64, Value)]| {
        let scheduled = events.iter().filter(|(_, job)| job["status"] == "scheduled");
        let scheduled: BTreeSet<_> = scheduled.map(|(_, job)| job["jobId"].to_string()).collect();
        let has_ended = events.last().is_some_and(|(_, job)| job["status"] == "cancelled");
        has_ended && scheduled.len() >= JOBS - 1
    };
    let seen = read(&mut all, is_whole).await;
    assert!(seen.is_sorted_by(|one, other| one.0 < other.0), "each change once, and in order");
    let changes = jobs.last_change().await.expect("a number");
    assert_eq!(seen.last().map(|(id, _)| *id), Some(changes));
    let ended = read(&mut one, |events| events.iter().any(|(_, job)| job["status"] == "cancelled")).await;
    assert_eq!(ended.last().map(|(id, _)| *id), Some(changes));
    service.hub.stop().await;
}
