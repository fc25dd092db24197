//! `/$iothub/websocket`: MQTT for devices that reach port 443 only.

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper_util::rt::TokioIo;
use iothub_protocol::error::{ErrorCode, HubError};
use ring::digest;

use super::RestState;
use super::reply::{Refusal, header_text};
use super::serve::Peer;
use crate::websocket::WebSocket;

/// What RFC 6455 puts behind a client's key.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const SUBPROTOCOL: &str = "mqtt";
const VERSION: &str = "13";

/// Answer the handshake; what comes after goes the way of every MQTT connection.
pub(super) async fn upgrade(
    State(state): State<RestState>,
    Extension(peer): Extension<Peer>,
    mut request: Request<Body>,
) -> Result<Response, Refusal> {
    let accept = accept(request.headers())?;
    let once = || HubError::new(ErrorCode::GenericBadRequest, "this connection is a WebSocket already");
    let guest = peer.into_guest().ok_or_else(once)?;
    let upgraded = hyper::upgrade::on(&mut request);
    state.door.admit(guest, async {
        match upgraded.await {
            Ok(stream) => Some(WebSocket::new(TokioIo::new(stream))),
            Err(error) => {
                tracing::debug!(%error, "a WebSocket handshake was not ended");
                None
            }
        }
    });
    let headers = [
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
        (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// The proof that the handshake was understood.
fn accept(headers: &HeaderMap) -> Result<HeaderValue, HubError> {
    let bad = |text: &str| HubError::new(ErrorCode::GenericBadRequest, text);
    if !lists(headers, &header::CONNECTION, "upgrade") || !lists(headers, &header::UPGRADE, "websocket") {
        return Err(bad("this address is for WebSocket: Connection and Upgrade do not ask for it"));
    }
    if header_text(headers, &header::SEC_WEBSOCKET_VERSION) != Some(VERSION) {
        return Err(bad("Sec-WebSocket-Version is not 13"));
    }
    if !lists(headers, &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(bad("Sec-WebSocket-Protocol does not offer mqtt, which is all that is spoken here"));
    }
    let key = header_text(headers, &header::SEC_WEBSOCKET_KEY).unwrap_or_default();
    if !BASE64.decode(key).is_ok_and(|key| key.len() == 16) {
        return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    let text = format!("{key}{KEY_SUFFIX}");
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    Ok(HeaderValue::from_str(&BASE64.encode(digest)).expect("base64 is a header"))
}

/// Whether a header is a list with this word in it.
fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_handshake_for_mqtt_is_answered() {
        let whole = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "AMQPWSB10, mqtt"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            let value = |text: &str| HeaderValue::from_str(text).expect("a header");
            pairs.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect()
        };
        let accepted = accept(&headers(&whole)).expect("accepted");
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "RFC 6455, 1.3");
        for left_out in 0..whole.len() {
            let mut pairs = whole.to_vec();
            let (name, _) = pairs.remove(left_out);
            assert!(accept(&headers(&pairs)).is_err(), "without {name}");
            pairs.push((name, "nonsense"));
            assert!(accept(&headers(&pairs)).is_err(), "with a wrong {name}");
        }
    }
}
