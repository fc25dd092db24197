//! What the operator's socket serves of the hub and Azure has not in REST: events, and sending cloud-to-device messages,
//! which at Azure go by AMQP. Whoever reaches the socket may; there are no tokens here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::Utc;
use futures_util::stream;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::{DeviceId, IdError};
use iothub_protocol::link::{CloudMessage, Feedback};
use serde::Deserialize;
use serde_json::{Value, json};

use super::events::{self, EventQuery};
use super::extract::{Path, Query};
use super::{rehearsals, store, tokens};
use crate::driver::HubHandle;
use crate::events::{EventKind, EventLog};
use crate::hub::{Answer, Operation, numbered, properties_size};
use crate::policy::Policy;
use iothub_protocol::quota::tier::Class;

/// Largest request: a message of 64 KiB in base64 with room for escapes.
const MAX_BODY: usize = 512 * 1024;
/// Events that are looked at together.
const BATCH: usize = 100;

/// The routes:
/// `GET /events`; `POST /messages/{device}` with a message, or with `?wait=true` its end, and `GET /messages/{device}`, the
/// queue; `GET /feedback`, one JSON object a line, which takes nothing away from back ends; `POST /policies/{name}/token`, a
/// token of that policy; and those of `rehearsals`.
/// Errors are `{"error": "…", "code": "…"}` with a status of 400 and above.
pub(crate) fn router(hub: HubHandle, policies: Arc<[Policy]>) -> Router {
    Router::new()
        .route("/events", get(follow))
        .route("/messages/{device}", get(list).post(send))
        .route("/feedback", get(feedback))
        .merge(rehearsals::router())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(store::router())
        .with_state(hub)
        .merge(Router::new().route("/policies/{policy}/token", post(tokens::make)).with_state(policies))
}

/// An error for the operator.
pub(super) struct OperatorError(HubError);

impl From<HubError> for OperatorError {
    fn from(error: HubError) -> OperatorError {
        OperatorError(error)
    }
}

impl From<IdError> for OperatorError {
    fn from(error: IdError) -> OperatorError {
        OperatorError(HubError::new(ErrorCode::ArgumentInvalid, error.to_string()))
    }
}

impl IntoResponse for OperatorError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(json!({"error": self.0.to_string(), "code": self.0.code.name()}))).into_response()
    }
}

async fn follow(hub: State<HubHandle>, query: Query<EventQuery>) -> Result<Response, OperatorError> {
    Ok(events::follow(hub, query).await?)
}

async fn list(State(hub): State<HubHandle>, Path(device): Path) -> Result<Response, OperatorError> {
    document(hub.request(Operation::ListMessages(DeviceId::parse(&device)?)).await?)
}

#[derive(Deserialize)]
struct SendQuery {
    /// Answer when the message has ended, and say how.
    #[serde(default)]
    wait: bool,
}

async fn send(
    State(hub): State<HubHandle>,
    Path(device): Path,
    Query(query): Query<SendQuery>,
    body: Bytes,
) -> Result<Response, OperatorError> {
    let id = DeviceId::parse(&device)?;
    let message = Box::new(read_message(&body)?);
    hub.rehearsal().pass_or_fail(Class::CloudSends, 1).await?;
    hub.rehearsal().charge(|| message.body.len() + properties_size(&message.properties));
    document(hub.request(Operation::SendMessage { id, message, wait: query.wait }).await?)
}

fn document(answer: Answer) -> Result<Response, OperatorError> {
    match answer {
        Answer::Document(document) => Ok(Json(document).into_response()),
        other => Err(HubError::new(ErrorCode::ServerError, format!("the hub answered with {other:?}")).into()),
    }
}

/// A message as the operator sends it. Its id is made up if there is none, so that feedback names it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MessageBody {
    message_id: Option<String>,
    correlation_id: Option<String>,
    user_id: Option<String>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    /// From now.
    expiry_seconds: Option<u64>,
    ack: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    body: Option<String>,
    body_base64: Option<String>,
}

fn read_message(body: &[u8]) -> Result<CloudMessage, HubError> {
    let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
    let read: MessageBody = serde_json::from_slice(body)
        .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is no message: {e}")))?;
    let feedback = match read.ack.as_deref() {
        None => Feedback::None,
        Some(word) => Feedback::parse(word)
            .ok_or_else(|| invalid(format!("ack {word:?} is none of none, positive, negative and full")))?,
    };
    let expiry = match read.expiry_seconds {
        None => None,
        // What is too long for a time is too long for a message, too.
        Some(seconds) => Some(
            chrono::TimeDelta::from_std(Duration::from_secs(seconds))
                .ok()
                .and_then(|life| Utc::now().checked_add_signed(life))
                .ok_or_else(|| HubError::new(ErrorCode::InvalidMessageExpiryTime, "the expiry is out of range"))?,
        ),
    };
    let body = match (read.body, read.body_base64) {
        (Some(_), Some(_)) => return Err(invalid("body and bodyBase64 exclude each other".into())),
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => BASE64.decode(text).map_err(|e| invalid(format!("bodyBase64 is not base64: {e}")))?,
        (None, None) => Vec::new(),
    };
    Ok(CloudMessage {
        message_id: Some(read.message_id.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()))),
        correlation_id: read.correlation_id,
        user_id: read.user_id,
        expiry,
        content_type: read.content_type,
        content_encoding: read.content_encoding,
        feedback,
        properties: read.properties.into_iter().collect(),
        body,
    })
}

#[derive(Deserialize)]
struct FeedbackQuery {
    /// Keep the answer open and send what comes.
    #[serde(default)]
    follow: bool,
}

async fn feedback(State(hub): State<HubHandle>, Query(query): Query<FeedbackQuery>) -> Result<Response, OperatorError> {
    // Before the list, so that nothing falls between the two; what stands in both is told apart by its number.
    let events = hub.events().clone();
    let next = events.next();
    let Answer::Document(Value::Array(waiting)) = hub.request(Operation::ListFeedback).await? else {
        return Err(HubError::new(ErrorCode::ServerError, "the hub has no list of feedback").into());
    };
    let last_sequence = waiting.last().and_then(|record| record["sequence"].as_u64()).unwrap_or_default();
    let waiting: String = waiting.iter().map(|record| format!("{record}\n")).collect();
    let cursor = Cursor { waiting: Some(waiting), follow: query.follow.then_some((events, next)), last_sequence };
    Ok(events::answer(stream::unfold(cursor, |mut cursor| async move { Some((cursor.lines().await?, cursor)) })))
}

struct Cursor {
    /// What waited when it was asked.
    waiting: Option<String>,
    /// Where to look for more.
    follow: Option<(EventLog, u64)>,
    last_sequence: u64,
}

impl Cursor {
    /// Some lines; `None` at the end.
    async fn lines(&mut self) -> Option<String> {
        if let Some(waiting) = self.waiting.take() {
            return Some(waiting);
        }
        let (events, next) = self.follow.as_mut()?;
        loop {
            if !events.wait(*next).await {
                return None;
            }
            let page = events.page(*next, BATCH);
            *next = page.next;
            let records = page.events.iter().filter_map(|(_, event)| match &event.kind {
                EventKind::Settled { feedback: Some((sequence, record)), .. } => {
                    (*sequence > self.last_sequence).then(|| format!("{}\n", numbered(*sequence, record)))
                }
                _ => None,
            });
            let missed = (page.missed > 0).then(|| format!("{}\n", json!({"kind": "missed", "count": page.missed})));
            let lines: String = missed.into_iter().chain(records).collect();
            if !lines.is_empty() {
                return Some(lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_whole() {
        let body = br#"{"messageId": "m1", "correlationId": "c1", "userId": "u1", "contentType": "text/plain",
            "contentEncoding": "utf-8", "expirySeconds": 60, "ack": "full", "properties": {"b": "1", "a": "2"},
            "bodyBase64": "/w=="}"#;
        let message = read_message(body).expect("a message");
        let life = message.expiry.expect("an expiry") - Utc::now();
        assert!((50..=60).contains(&life.num_seconds()), "{life}");
        let expected = CloudMessage {
            message_id: Some("m1".into()),
            correlation_id: Some("c1".into()),
            user_id: Some("u1".into()),
            expiry: message.expiry,
            content_type: Some("text/plain".into()),
            content_encoding: Some("utf-8".into()),
            feedback: Feedback::Full,
            properties: vec![("a".into(), "2".into()), ("b".into(), "1".into())],
            body: vec![0xff],
        };
        assert_eq!(message, expected);
        let plain = read_message(br#"{"body": "hello"}"#).expect("a message");
        assert_eq!((plain.body.as_slice(), plain.message_id.map(|id| id.len())), (&b"hello"[..], Some(32)));
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_reason() {
        for (body, text) in [
            ("[]", "no message"),
            (r#"{"properties": {"a": 1}}"#, "no message"),
            (r#"{"expiry": 60}"#, "unknown field `expiry`"),
            (r#"{"ack": "loud"}"#, "none of none"),
            (r#"{"body": "a", "bodyBase64": "/w=="}"#, "exclude each other"),
            (r#"{"bodyBase64": "?"}"#, "not base64"),
            (r#"{"expirySeconds": -1}"#, "no message"),
            (r#"{"expirySeconds": 18446744073709551615}"#, "out of range"),
        ] {
            let error = read_message(body.as_bytes()).expect_err(body);
            assert!(error.message.contains(text), "{body}: {error}");
        }
    }
}
