//! What happens to jobs, told to a receiver elsewhere.

use std::io::{self, BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{self, Receiver as Inbox};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, thread};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use ring::hmac;
use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, Process, latch, latch_command, latch_ok, wait_until};

/// Until an event has come, or come again.
const EVENT_BOUND: Duration = Duration::from_secs(30);
const LATER: &[&str] = &["--query", "*", "--start", "2100-01-01T00:00:00Z"];
const KEYS: [&str; 2] = ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"];

/// Takes events, or does not.
struct Receiver {
    address: SocketAddr,
    events: Inbox<Delivery>,
    /// Answers to come, before those that take events.
    answers: Arc<Mutex<Vec<&'static str>>>,
}

/// A try of an event.
#[derive(Debug)]
struct Delivery {
    path: String,
    id: String,
    body: Value,
    answer: &'static str,
}

const TAKEN: &str = "204 No Content";
const REFUSED: &str = "503 Service Unavailable";
/// To a place of which nobody is to hear.
const MOVED: &str = "307 Temporary Redirect\r\nlocation: /elsewhere";

impl Receiver {
    fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (told, events) = mpsc::channel();
        let to_come = answers.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                // A sender that was killed has not sent all, or does not hear.
                let Ok((path, head, body)) = request(&mut BufReader::new(&stream)) else { continue };
                let answer = to_come.lock().expect("no panic").pop().unwrap_or(TAKEN);
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                if stream.write_all(text.as_bytes()).is_err() {
                    continue;
                }
                let delivery = Delivery { path, id: checked(&head, &body), body: parsed(&body), answer };
                if told.send(delivery).is_err() {
                    return;
                }
            }
        });
        Receiver { address, events, answers }
    }

    /// What comes next.
    fn next(&self) -> Delivery {
        self.events.recv_timeout(EVENT_BOUND).expect("an event in time")
    }

    /// These come before any other answer, the last one first.
    fn answer(&self, answers: &[&'static str]) {
        self.answers.lock().expect("no panic").extend(answers);
    }

    fn hub(&self, data: &Path, ports: &[&str], secret: &str) -> Latch {
        let url = format!("http://{}/hook?team=hush", self.address);
        let webhook = ["--job-webhook", &url, "--job-webhook-secret-file", secret];
        Latch::start(data, &[&["hub", "-v"], &webhook[..], ports].concat())
    }
}

/// Names, in small letters, and values.
type Headers = Vec<(String, String)>;

/// Path, headers and body of a request.
fn request(stream: &mut impl BufRead) -> io::Result<(String, Headers, String)> {
    let mut line = || -> io::Result<String> {
        let mut text = String::new();
        stream.read_line(&mut text)?;
        Ok(text.trim_end().to_owned())
    };
    let path = line()?.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut head = Vec::new();
    while let Some((name, value)) = line()?.split_once(':') {
        head.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = head.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let mut body = vec![0; length.ok_or(io::ErrorKind::UnexpectedEof)?];
    stream.read_exact(&mut body)?;
    Ok((path, head, String::from_utf8(body).map_err(io::Error::other)?))
}

fn header<'a>(head: &'a [(String, String)], name: &str) -> &'a str {
    let found = head.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| &**value).unwrap_or_else(|| panic!("no {name} in {head:?}"))
}

/// The event's id, if each key has signed it now.
fn checked(head: &[(String, String)], body: &str) -> String {
    let (id, timestamp) = (header(head, "webhook-id"), header(head, "webhook-timestamp"));
    let age = Utc::now().timestamp() - timestamp.parse::<i64>().expect("seconds");
    assert!((-5..60).contains(&age), "signed {age} s ago");
    assert_eq!(header(head, "content-type"), "application/json");
    let signatures: Vec<_> = header(head, "webhook-signature").split(' ').collect();
    assert_eq!(signatures.len(), KEYS.len(), "{signatures:?}");
    for (key, signature) in KEYS.iter().zip(signatures) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).expect("a key"));
        let tag = STANDARD.decode(signature.strip_prefix("v1,").expect("version 1")).expect("a signature");
        hmac::verify(&key, format!("{id}.{timestamp}.{body}").as_bytes(), &tag).expect("the right signature");
    }
    id.to_owned()
}

fn parsed(body: &str) -> Value {
    serde_json::from_str(body).expect("JSON")
}

#[test]
fn a_receiver_that_fails_and_a_hub_that_is_killed_lose_no_event() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let secret = data.join("secret");
    fs::write(&secret, format!("whsec_{}\n{}\n", KEYS[0], KEYS[1])).expect("a file");
    let secret = secret.to_str().expect("a readable name");
    let receiver = Receiver::start();
    let hub = receiver.hub(data, &[&["--devices", "2"], FREE_PORTS].concat(), secret);
    receiver.answer(&[MOVED, REFUSED]);
    latch_ok(data, &[&["job", "method", "lockDoor", "--id", "one"][..], LATER].concat());
    let tries = [(); 3].map(|()| receiver.next());
    assert_eq!(tries.each_ref().map(|event| event.answer), [REFUSED, MOVED, TAKEN]);
    for event in &tries {
        assert_eq!((&*event.path, &event.id, &event.body), ("/hook?team=hush", &tries[0].id, &tries[0].body));
    }
    let created = &tries[0].body;
    assert_eq!((&created["type"], &created["data"]["job"]["jobId"]), (&json!("job.created"), &json!("one")));
    assert!(created["timestamp"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')));

    // Nothing is taken, and the engine goes on all the same.
    receiver.answer(&[REFUSED; 20]);
    latch_ok(data, &["job", "pause", "one", "--reason", "not now"]);
    latch_ok(data, &["job", "cancel", "one"]);
    let paused = receiver.next();
    assert_eq!((&paused.body["type"], paused.answer), (&json!("job.paused"), REFUSED));
    let ports = hub.same_ports();
    let said = hub.transcript();
    hub.kill();
    for secret in ["hush", KEYS[0], KEYS[1]] {
        assert!(!said.contains(secret), "{said}");
    }
    assert!(said.contains("it answered 503"), "{said}");

    receiver.answers.lock().expect("no panic").clear();
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let _hub = receiver.hub(data, &ports, secret);
    let taken = || {
        let event = receiver.next();
        (event.answer == TAKEN).then_some(event)
    };
    let again = wait_until("what was not taken", EVENT_BOUND, taken);
    assert_eq!((&again.id, &again.body["type"]), (&paused.id, &json!("job.paused")));
    assert_eq!(again.body["data"]["paused"], json!({"by": "operator", "reason": "not now"}), "as it was then");
    assert_eq!(again.body["data"]["job"]["status"], json!("cancelled"), "as it is now");
    assert_eq!(receiver.next().body["type"], json!("job.resumed"), "for its end");
    let ended = receiver.next();
    assert_eq!((&ended.body["type"], &ended.body["data"]["status"]), (&json!("job.ended"), &json!("cancelled")));
    assert!(ended.id != again.id && again.id != tries[0].id);

    // A job that runs. Its devices are not connected.
    latch(data, &["job", "method", "lockDoor", "--id", "two", "--query", "*", "--wait"]);
    let events = [(); 3].map(|()| receiver.next().body);
    assert_eq!(events.each_ref().map(|event| &event["type"]), ["job.created", "job.started", "job.ended"]);
    let job = &events[2]["data"]["job"];
    assert_eq!((&job["jobId"], &job["deviceJobStatistics"]["failedCount"]), (&json!("two"), &json!(2)), "{job:#}");
}

#[test]
fn a_host_that_runs_jobs_tells_of_them_by_what_the_environment_says() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [hub_data, data] = folders.each_ref().map(|folder| folder.path());
    let _hub = Latch::start(hub_data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let [connection, ca] = ["service.connstr", "ca.pem"].map(|name| hub_data.join(name));
    let [connection, ca] = [&connection, &ca].map(|path| path.to_str().expect("a readable name"));
    let receiver = Receiver::start();
    let mut command = latch_command(data, &["run", "--jobs", "--hub", connection, "--ca", ca]);
    command.env("LATCH_JOB_WEBHOOK", format!("http://{}/hook", receiver.address));
    command.env("LATCH_JOB_WEBHOOK_SECRET", KEYS.join("\n"));
    let host = Process::spawn("latch", &mut command);
    host.wait_for_line("ready", EVENT_BOUND);
    let create = ["job", "method", "lockDoor", "--id", "one", "--engine", "latch", "--hub", connection, "--ca", ca];
    latch_ok(data, &[&create[..], LATER].concat());
    assert_eq!(receiver.next().body["data"]["job"]["jobId"], json!("one"));
    let alone = latch(data, &["run", "--job-webhook", "http://127.0.0.1:1/"]);
    assert!(alone.code == Some(1) && alone.stderr.contains("give --jobs, too"), "{alone:?}");
}

#[test]
fn a_receiver_must_show_who_it_is_and_share_a_secret() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [other, data] = folders.each_ref().map(|folder| folder.path());
    let secret = data.join("secret");
    fs::write(&secret, KEYS[0]).expect("a file");
    let secret = secret.to_str().expect("a readable name");
    // Another hub will do as a receiver with a certificate: it refuses whatever it is sent.
    let receiver = Latch::start(other, &[&["hub"], FREE_PORTS].concat());
    let port = receiver.same_ports()[1].rsplit(':').next().expect("a port").to_owned();
    let url = format!("https://localhost:{port}/hook");
    let ca = |folder: &Path| folder.join("ca.pem").to_str().expect("a readable name").to_owned();
    let start = |ca: &str| {
        let webhook = ["--job-webhook", &url, "--job-webhook-secret-file", secret, "--job-webhook-ca", ca];
        Latch::start(data, &[&["hub", "-v"], &webhook[..], FREE_PORTS].concat())
    };
    // Before it can trust its own authority there must be one.
    Latch::start(data, &[&["hub"], FREE_PORTS].concat()).stop();
    let (own, others) = (ca(data), ca(other));
    let mut job = 0;
    for (ca, expected) in [(own, "invalid peer certificate"), (others, "it answered 40")] {
        let hub = start(&ca);
        job += 1;
        latch_ok(data, &[&["job", "method", "lockDoor", "--id", &format!("job-{job}")][..], LATER].concat());
        wait_until(expected, EVENT_BOUND, || hub.transcript().contains(expected).then_some(()));
        assert!(hub.stop().success());
    }

    for (args, expected) in [
        (&["--job-webhook", "http://example.com/", "--job-webhook-secret-file", secret][..], "without TLS"),
        (&["--job-webhook", "http://127.0.0.1:1/"], "needs a secret"),
        (&["--job-webhook-secret-file", secret], "there is no webhook"),
        (&["--job-webhook", "http://127.0.0.1:1/", "--job-webhook-secret-file", "/dev/null"], "there is no key"),
        (&["--job-webhook", "https://a:hush@h/", "--job-webhook-secret-file", secret], "a user or a password"),
    ] {
        let refused = latch(data, &[&["hub"], args, FREE_PORTS].concat());
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(expected) && !refused.stderr.contains("hush"), "{refused:?}");
    }
}
