//! Server-sent events of a job's progress, which the embedded hub has and Azure has not.

use std::time::Duration;

use reqwest::Response;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::error::{Problem, ServiceError};

/// A hub that says nothing for so long is gone: it sends something every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// Longest event, in bytes: a job's progress is some hundred.
const MAX_EVENT: usize = 1024 * 1024;

/// An event as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Event {
    /// For whoever comes back: what it has seen.
    id: Option<String>,
    data: String,
}

/// A stream of events that is open.
#[derive(Debug)]
pub struct JobEvents {
    host: String,
    response: Response,
    parser: Parser,
    /// When the hub last said something.
    heard: Instant,
}

impl JobEvents {
    pub(crate) fn new(host: String, response: Response) -> JobEvents {
        JobEvents { host, response, parser: Parser::default(), heard: Instant::now() }
    }

    /// The next event: its id and a job as it is then. `None` at the end. Nothing is lost if nobody waits for it to its end.
    ///
    /// # Errors
    /// If the connection is lost, or what comes is no stream of events.
    pub async fn next(&mut self) -> Result<Option<(Option<String>, Value)>, ServiceError> {
        loop {
            if let Some(event) = self.parser.take() {
                let job = serde_json::from_str(&event.data).map_err(|error| self.unreadable(&error.to_string()))?;
                return Ok(Some((event.id, job)));
            }
            let lost = |problem| ServiceError::Transport { host: self.host.clone(), problem };
            let chunk = timeout_at(self.heard + SILENCE, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| lost(Problem::TimedOut))?.map_err(|error| lost(Problem::of(&error)))?;
            let Some(chunk) = chunk else { return Ok(None) };
            self.heard = Instant::now();
            self.parser.feed(&chunk);
            if self.parser.size() > MAX_EVENT {
                return Err(self.unreadable("an event is too long"));
            }
        }
    }

    fn unreadable(&self, reason: &str) -> ServiceError {
        ServiceError::Decode { call: "GET the events of a job".to_owned(), reason: format!("cannot be read: {reason}") }
    }
}

/// Makes events of bytes, wherever they are cut.
#[derive(Debug, Default)]
struct Parser {
    bytes: Vec<u8>,
    event: Event,
    has_data: bool,
    id: Option<String>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes of what is not an event yet.
    fn size(&self) -> usize {
        self.bytes.len() + self.event.data.len()
    }

    fn take(&mut self) -> Option<Event> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                // An id alone moves the reader's place; only data is an event.
                if std::mem::take(&mut self.has_data) {
                    return Some(Event { id: self.id.clone(), ..event });
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => self.id = Some(value.to_owned()),
                "data" => {
                    if std::mem::replace(&mut self.has_data, true) {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                // A comment, or what this reader does not heed: a job says itself whether it has ended.
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\nretry: 1000\n\nid: 7\nevent: progress\ndata: {\"a\":1}\n\n: heartbeat\n\nid: 8\r\n\
                          event: end\r\ndata: one\r\ndata:two\r\n\r\nid: 9\n\ndata\n\nhalf";

    fn events(chunk: usize) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for bytes in STREAM.as_bytes().chunks(chunk) {
            parser.feed(bytes);
            while let Some(event) = parser.take() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn events_are_read_wherever_the_bytes_are_cut() {
        let event = |id: &str, data: &str| Event { id: Some(id.to_owned()), data: data.to_owned() };
        let expected = [event("7", "{\"a\":1}"), event("8", "one\ntwo"), event("9", "")];
        for chunk in [1, 2, 3, 7, 1000] {
            assert_eq!(events(chunk), expected, "{chunk}");
        }
    }
}
