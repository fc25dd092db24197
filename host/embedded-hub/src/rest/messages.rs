//! Cloud-to-device messages over HTTPS, as far as Azure has that: a device takes and settles its own, a back end takes
//! feedback and purges. (A back end sends by AMQP, which this hub does not speak; see [`super::operator`].)

use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::time;
use serde_json::Value;

use super::RestState;
use super::devices::document;
use super::extract::Path as PathPart;
use super::reply::{Refusal, header_text};
use super::serve::Peer;
use crate::hub::{Answer, Credentials, Operation};
use crate::policy::Rights;
use crate::queue::{self, Disposition, Queued};

/// How long the device wants the message for itself, in seconds.
const LOCK_TIMEOUT: HeaderName = HeaderName::from_static("iothub-messagelocktimeout");
/// What it may ask for; Azure's numbers.
const LOCK_TIMEOUTS: std::ops::RangeInclusive<u64> = 5..=300;
const FEEDBACK_TYPE: &str = "application/vnd.microsoft.iothub.feedback.json";

/// `DELETE /devices/{id}/commands`.
pub(super) async fn purge(
    State(state): State<RestState>,
    PathPart(id): PathPart,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    document(&state, Operation::PurgeMessages(DeviceId::parse(&id)?)).await
}

/// `GET /messages/serviceBound/feedback`: a batch, with the token of its lock as the etag; 204 if there is none.
pub(super) async fn receive_feedback(State(state): State<RestState>, headers: HeaderMap) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    let token = rand::random();
    match state.hub.request(Operation::ReceiveFeedback { token }).await? {
        Answer::Document(Value::Array(records)) if !records.is_empty() => {
            let etag = etag(token);
            let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(FEEDBACK_TYPE)), (header::ETAG, etag)];
            Ok((headers, Value::Array(records).to_string()).into_response())
        }
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// `DELETE /messages/serviceBound/feedback/{lock}`.
pub(super) async fn complete_feedback(
    State(state): State<RestState>,
    PathPart(lock): PathPart,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    settle_feedback(state, &lock, &headers, Disposition::Complete).await
}

/// `POST /messages/serviceBound/feedback/{lock}/abandon`.
pub(super) async fn abandon_feedback(
    State(state): State<RestState>,
    PathPart(lock): PathPart,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    settle_feedback(state, &lock, &headers, Disposition::Abandon).await
}

async fn settle_feedback(
    state: RestState,
    lock: &str,
    headers: &HeaderMap,
    disposition: Disposition,
) -> Result<Response, Refusal> {
    state.authorize(headers, Rights::SERVICE_CONNECT)?;
    let token = token(lock)?;
    state.hub.request(Operation::SettleFeedback { token, disposition }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /devices/{id}/messages/deviceBound`: the next message, with the token of its lock as the etag; 204 if there is
/// none.
pub(super) async fn receive(
    State(state): State<RestState>,
    PathPart(id): PathPart,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (id, credentials, token) = (DeviceId::parse(&id)?, credentials(peer, &headers)?, rand::random());
    let lock = lock_timeout(&headers)?;
    match state.hub.request(Operation::ReceiveMessage { id: id.clone(), credentials, token, lock }).await? {
        Answer::Message(queued) => Ok((headers_of(&id, token, &queued), queued.message.body.clone()).into_response()),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// `DELETE /devices/{id}/messages/deviceBound/{lock}`: complete, or with `?reject` reject.
pub(super) async fn complete_or_reject(
    State(state): State<RestState>,
    Path((id, lock)): Path<(String, String)>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let mut parameters = uri.query().unwrap_or_default().split('&');
    let is_rejection = parameters.any(|parameter| parameter.split('=').next() == Some("reject"));
    let disposition = if is_rejection { Disposition::Reject } else { Disposition::Complete };
    settle(state, &id, &lock, credentials(peer, &headers)?, disposition).await
}

/// `POST /devices/{id}/messages/deviceBound/{lock}/abandon`.
pub(super) async fn abandon(
    State(state): State<RestState>,
    Path((id, lock)): Path<(String, String)>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    settle(state, &id, &lock, credentials(peer, &headers)?, Disposition::Abandon).await
}

async fn settle(
    state: RestState,
    id: &str,
    lock: &str,
    credentials: Credentials,
    disposition: Disposition,
) -> Result<Response, Refusal> {
    let id = DeviceId::parse(id)?;
    let token = token(lock)?;
    state.hub.request(Operation::SettleMessage { id, credentials, token, disposition }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What the device shows: a token in the header, a certificate in the handshake.
pub(super) fn credentials(peer: Peer, headers: &HeaderMap) -> Result<Credentials, HubError> {
    let (certificate, token) = (peer.certificate, header_text(headers, &header::AUTHORIZATION).map(str::to_owned));
    if token.is_none() && certificate.is_none() {
        return Err(HubError::new(ErrorCode::IotHubUnauthorized, "Authorization header missing"));
    }
    Ok(Credentials { token, certificate })
}

fn lock_timeout(headers: &HeaderMap) -> Result<Duration, HubError> {
    let Some(text) = header_text(headers, &LOCK_TIMEOUT) else { return Ok(queue::LOCK) };
    let seconds = text.parse().ok().filter(|seconds| LOCK_TIMEOUTS.contains(seconds));
    let text = || format!("{LOCK_TIMEOUT} must be 5 to 300 seconds");
    seconds.map(Duration::from_secs).ok_or_else(|| HubError::new(ErrorCode::ArgumentInvalid, text()))
}

/// A lock's token as Azure writes it: like a GUID.
fn etag(token: u128) -> HeaderValue {
    let digits = format!("{token:032x}");
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    HeaderValue::from_str(&format!("\"{}\"", parts.join("-"))).expect("digits and dashes are a header")
}

/// # Errors
/// 412002 for what is no token: no lock has it.
fn token(text: &str) -> Result<u128, HubError> {
    let digits = text.trim_matches('"').replace('-', "");
    let lost = || HubError::new(ErrorCode::DeviceMessageLockLost, "the lock token is none that this hub gives");
    let is_hexadecimal = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(&digits, 16).ok().filter(|_| is_hexadecimal).ok_or_else(lost)
}

/// What is not text of a header cannot travel this way and is left out.
fn headers_of(id: &DeviceId, token: u128, queued: &Queued) -> HeaderMap {
    let message = &queued.message;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let system = [
        ("iothub-messageid", text(&message.message_id)),
        ("iothub-correlationid", text(&message.correlation_id)),
        ("iothub-userid", text(&message.user_id)),
        ("iothub-to", format!("/devices/{id}/messages/devicebound")),
        ("iothub-ack", message.feedback.name().to_owned()),
        ("iothub-sequencenumber", queued.sequence.to_string()),
        ("iothub-enqueuedtime", time::format(queued.enqueued)),
        ("iothub-expiry", time::format(queued.expiry)),
        ("iothub-deliverycount", queued.delivery_count.to_string()),
    ];
    let types =
        [("content-type", message.content_type.clone()), ("content-encoding", message.content_encoding.clone())];
    let application = message.properties.iter().map(|(name, value)| (format!("iothub-app-{name}"), value.clone()));
    let system = system.into_iter().map(|(name, value)| (name.to_owned(), value));
    let types = types.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let pairs = application.chain(types).chain(system);
    let mut headers: HeaderMap = pairs
        .filter_map(|(name, value)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
        })
        .collect();
    headers.insert(header::ETAG, etag(token));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_token_is_written_like_a_guid_and_read_back() {
        for value in [0, 1, u128::MAX, 0x1234_5678_9abc_def0_0fed_cba9_8765_4321] {
            let text = etag(value);
            let text = text.to_str().expect("text");
            assert_eq!((text.len(), token(text)), (38, Ok(value)), "{text}");
            assert_eq!(token(text.trim_matches('"')), Ok(value));
        }
        for text in ["", "x", "+1234567812345678123456781234567", "12345678-1234-1234-1234-1234567890123"] {
            assert_eq!(token(text).map_err(|error| error.code), Err(ErrorCode::DeviceMessageLockLost), "{text}");
        }
    }
}
