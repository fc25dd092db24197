//! `POST /devices/query`: what is asked, a page of it, and the rows of `devices.jobs`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::query::{GroupKey, ItemType, Query, Source};
use job_engine::JobEngine;
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::JobApi;
use crate::reply::{CONTINUATION, ITEM_TYPE, Refusal, header_text, json, page_size, read_body};

/// A request for a page of a query's answer.
pub struct Asked {
    pub query: Query,
    /// Where the page before ended; of the first one, with nothing given.
    pub token: Token,
    /// Most rows of the page.
    pub limit: usize,
}

/// Where a page ended. Holds nothing of the hub's memory, so that it outlives restarts and edits.
#[derive(Serialize, Deserialize, Default)]
pub struct Token {
    /// The last device or module looked at; for jobs, the position that the engine named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Of a query with groups: the last one given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupKey>,
    /// Rows given so far, for `TOP`.
    pub given: u64,
    /// Of which query.
    pub of: String,
}

#[derive(Deserialize)]
struct QueryBody {
    query: Option<String>,
}

impl Asked {
    /// # Errors
    /// 400006 or 400005 for a body that holds no query, 400004 for a text that is none or for another query's token.
    pub async fn read(headers: &HeaderMap, body: Body) -> Result<Asked, HubError> {
        let body: QueryBody = serde_json::from_slice(&read_body(body).await?).map_err(|e| {
            HubError::new(ErrorCode::IotHubFormatError, format!("the body is not {{\"query\": …}}: {e}"))
        })?;
        let text = body.query.ok_or_else(|| HubError::new(ErrorCode::ArgumentNull, "query is missing"))?;
        let query = Query::parse(&text).map_err(HubError::from)?;
        let token = match header_text(headers, &CONTINUATION) {
            Some(token) => Token::read(token, &text)?,
            None => Token { of: fingerprint(&text), ..Token::default() },
        };
        Ok(Asked { query, token, limit: page_size(headers) })
    }
}

/// A page. `next` is where it ended, if there is more.
pub fn page(item_type: ItemType, rows: Vec<Value>, next: Option<&Token>) -> Response {
    let mut response = json(&Value::Array(rows));
    response.headers_mut().insert(ITEM_TYPE, HeaderValue::from_static(item_type.name()));
    // The last page must not have the header at all: clients take an empty one for "more".
    if let Some(token) = next.and_then(|token| HeaderValue::from_str(&token.write()).ok()) {
        response.headers_mut().insert(CONTINUATION, token);
    }
    response
}

/// Rows of `devices.jobs`.
pub async fn job_rows(jobs: &JobEngine, asked: Asked) -> Result<(Vec<Value>, Option<Token>), HubError> {
    let Asked { query, token, limit } = asked;
    let left = query.top().map_or(limit as u64, |top| top.saturating_sub(token.given));
    let limit = limit.min(usize::try_from(left).unwrap_or(limit));
    let page = jobs.device_rows(query.condition().clone(), limit, token.after.as_deref()).await?;
    let given = token.given + page.items.len() as u64;
    let next = page.continuation.filter(|_| query.top().is_none_or(|top| given < top));
    let rows = page.items.iter().map(|row| row.to_json()).collect();
    Ok((rows, next.map(|after| Token { after: Some(after), given, ..token })))
}

/// Where there is no hub that could be asked for twins.
pub(crate) async fn rows_alone(
    State(state): State<JobApi>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    state.authorize(&headers)?;
    let asked = Asked::read(&headers, body).await?;
    if asked.query.source() != Source::Jobs {
        let text = "here are the rows of devices.jobs alone, ask the hub for twins";
        return Err(HubError::new(ErrorCode::ArgumentInvalid, text).into());
    }
    let item_type = asked.query.item_type();
    let (rows, next) = job_rows(&state.jobs, asked).await?;
    Ok(page(item_type, rows, next.as_ref()))
}

impl Token {
    fn read(text: &str, query: &str) -> Result<Token, HubError> {
        let invalid = |text: &str| HubError::new(ErrorCode::ArgumentInvalid, text);
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let token: Option<Token> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let token = token.ok_or_else(|| invalid("the continuation token is not one of this hub"))?;
        if token.of != fingerprint(query) {
            return Err(invalid("the continuation token belongs to another query"));
        }
        Ok(token)
    }

    fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

fn fingerprint(query: &str) -> String {
    URL_SAFE_NO_PAD.encode(&digest::digest(&digest::SHA256, query.as_bytes()).as_ref()[..9])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_its_query() {
        let of = fingerprint("SELECT * FROM devices");
        let token = Token { after: Some("d1".into()), given: 3, of, ..Token::default() }.write();
        let read = Token::read(&token, "SELECT * FROM devices").expect("its own");
        assert_eq!((read.after.as_deref(), read.given), (Some("d1"), 3));
        assert!(Token::read(&token, "SELECT * FROM devices.jobs").is_err());
        for nonsense in ["", "x", "e30", "!!!"] {
            assert!(Token::read(nonsense, "SELECT * FROM devices").is_err(), "{nonsense}");
        }
    }
}
