//! Answers and refusals as HTTP.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use chrono::Utc;
use futures_util::StreamExt as _;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::IdError;
use serde_json::Value;

/// Largest request body: the largest legal one is a method call with 128 KiB of payload, escaped.
const MAX_BODY: usize = 1024 * 1024;
/// A body that takes longer is given up.
const BODY_TIME_LIMIT: Duration = Duration::from_secs(30);
/// How much of a body is read at all, as the refusal of one that is too large is not heard before that.
const MAX_READ: usize = 16 * MAX_BODY;

pub const CONTINUATION: HeaderName = HeaderName::from_static("x-ms-continuation");
pub const MAX_ITEM_COUNT: HeaderName = HeaderName::from_static("x-ms-max-item-count");
pub const ITEM_TYPE: HeaderName = HeaderName::from_static("x-ms-item-type");
const ERROR_CODE: HeaderName = HeaderName::from_static("iothub-errorcode");

/// A JSON answer.
pub fn json(value: &Value) -> Response {
    json_with_status(StatusCode::OK, value)
}

fn json_with_status(status: StatusCode, value: &Value) -> Response {
    let content_type = HeaderValue::from_static("application/json; charset=utf-8");
    (status, [(header::CONTENT_TYPE, content_type)], value.to_string()).into_response()
}

/// An error on its way to the caller.
pub struct Refusal {
    error: HubError,
    dialect: Dialect,
}

/// Which envelope the error travels in.
enum Dialect {
    Usual,
    /// That of direct methods, with the time-out in seconds that was applied.
    Method {
        waited: Option<u32>,
    },
}

impl From<HubError> for Refusal {
    fn from(error: HubError) -> Refusal {
        Refusal { error, dialect: Dialect::Usual }
    }
}

impl From<IdError> for Refusal {
    fn from(error: IdError) -> Refusal {
        HubError::new(ErrorCode::ArgumentInvalid, error.to_string()).into()
    }
}

impl Refusal {
    /// An error of a direct method.
    pub fn of_method(error: HubError, waited: Option<u32>) -> Refusal {
        Refusal { error, dialect: Dialect::Method { waited } }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let tracking = format!("{:032x}", rand::random::<u128>());
        let now = Utc::now();
        let body = match self.dialect {
            Dialect::Usual => self.error.envelope(&tracking, now),
            Dialect::Method { waited } => self.error.method_envelope(&tracking, waited, now),
        };
        let status = StatusCode::from_u16(self.error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_with_status(status, &body);
        response.headers_mut().insert(ERROR_CODE, HeaderValue::from_static(self.error.code.name()));
        response
    }
}

/// A request's whole body.
pub async fn read_body(body: Body) -> Result<Bytes, HubError> {
    let read = tokio::time::timeout(BODY_TIME_LIMIT, read_whole(body)).await;
    read.unwrap_or_else(|_| Err(HubError::new(ErrorCode::GenericBadRequest, "the body took too long to come")))
}

async fn read_whole(body: Body) -> Result<Bytes, HubError> {
    let mut chunks = body.into_data_stream();
    let (mut whole, mut size) = (BytesMut::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| HubError::new(ErrorCode::IotHubFormatError, "the body broke off"))?;
        size += chunk.len();
        if size <= MAX_BODY {
            whole.extend_from_slice(&chunk);
        } else if size > MAX_READ {
            break;
        }
    }
    if size > MAX_BODY {
        return Err(HubError::new(ErrorCode::MessageTooLarge, format!("the body is larger than {MAX_BODY} bytes")));
    }
    Ok(whole.freeze())
}

/// Read a body that nobody wants to its end, or as much of it as is read at all.
pub async fn pass_over(body: Body) {
    let mut chunks = body.into_data_stream();
    let pass = async {
        let mut size = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            size += chunk.len();
            if size > MAX_READ {
                break;
            }
        }
    };
    // The refusal goes out in any case.
    drop(tokio::time::timeout(BODY_TIME_LIMIT, pass).await);
}

/// A header's text, if it is there and is text.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
}

/// The condition of a change. One that is no text matches nothing, rather than being taken for absent.
pub fn if_match(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::IF_MATCH).filter(|value| !value.is_empty())?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The page size that a caller asked for, within what the hub gives.
pub fn page_size(headers: &HeaderMap) -> usize {
    /// Rows of a page if nothing is asked; Azure's number is not documented, 100 is what is seen.
    const DEFAULT: usize = 100;
    /// Most rows of a page.
    const MAX: usize = 1000;
    let asked = header_text(headers, &MAX_ITEM_COUNT).and_then(|text| text.parse().ok());
    asked.filter(|count| *count > 0).map_or(DEFAULT, |count: usize| count.min(MAX))
}
