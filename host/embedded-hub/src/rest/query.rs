//! `/devices/query`: pages of rows, found by walking the devices or modules in order of their ids.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::query::{Executor, GroupKey, Query, Source};
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RestState;
use super::reply::{CONTINUATION, ITEM_TYPE, Refusal, header_text, json, page_size, read_body};
use crate::driver::HubHandle;
use crate::policy::Rights;
use crate::scan::Walk;

#[derive(Deserialize)]
struct QueryBody {
    query: Option<String>,
}

/// Where a page ended. Holds nothing of the hub's memory, so that it outlives restarts and edits.
#[derive(Serialize, Deserialize, Default)]
struct Token {
    /// The last device or module looked at; for jobs, the position that the engine named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// Of a query with groups: the last one given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<GroupKey>,
    /// Rows given so far, for `TOP`.
    given: u64,
    /// Of which query.
    of: String,
}

pub(super) async fn run(State(state): State<RestState>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    let body: QueryBody = serde_json::from_slice(&read_body(body).await?)
        .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is not {{\"query\": …}}: {e}")))?;
    let text = body.query.ok_or_else(|| HubError::new(ErrorCode::ArgumentNull, "query is missing"))?;
    let query = Query::parse(&text).map_err(HubError::from)?;
    let token = match header_text(&headers, &CONTINUATION) {
        Some(token) => Token::read(token, &text)?,
        None => Token { of: fingerprint(&text), ..Token::default() },
    };
    let limit = page_size(&headers);
    let item_type = query.item_type();
    let (rows, next) = match query.source() {
        Source::Jobs => job_page(&state, &query, token, limit).await?,
        Source::Devices | Source::Modules if query.is_aggregate() => {
            group_page(&state.hub, Arc::new(query), token, limit).await?
        }
        Source::Devices | Source::Modules => twin_page(&state.hub, &query, token, limit).await?,
    };
    let mut response = json(&Value::Array(rows));
    response.headers_mut().insert(ITEM_TYPE, HeaderValue::from_static(item_type.name()));
    // The last page must not have the header at all: clients take an empty one for "more".
    if let Some(token) = next.and_then(|token| HeaderValue::from_str(&token.write()).ok()) {
        response.headers_mut().insert(CONTINUATION, token);
    }
    Ok(response)
}

async fn twin_page(
    hub: &HubHandle,
    query: &Query,
    token: Token,
    limit: usize,
) -> Result<(Vec<Value>, Option<Token>), HubError> {
    let mut executor = Executor::resume(query, token.given);
    let mut rows = Vec::new();
    let mut given = token.given;
    let invalid = |_| HubError::new(ErrorCode::ArgumentInvalid, "the continuation token is not one of this hub");
    let after = token.after.map(|id| Address::parse(&id).map_err(invalid)).transpose()?;
    let mut walk = Walk::of_query(hub, query, after.as_ref(), limit);
    while let Some(chunk) = walk.next().await? {
        let mut chunk = chunk.into_iter().peekable();
        while let Some((id, twin)) = chunk.next() {
            if let Some(row) = executor.push(&twin) {
                rows.push(row);
                given += 1;
            }
            if executor.is_done() {
                return Ok((rows, None));
            }
            if rows.len() == limit {
                let there_may_be_more = chunk.peek().is_some() || !walk.is_over();
                let token = Token { after: Some(id.to_string()), given, group: None, of: token.of };
                return Ok((rows, there_may_be_more.then_some(token)));
            }
        }
    }
    Ok((rows, None))
}

/// Groups are known once all devices were looked at, and are looked for again on each page: no more of them are kept
/// than a page has.
async fn group_page(
    hub: &HubHandle,
    query: Arc<Query>,
    token: Token,
    limit: usize,
) -> Result<(Vec<Value>, Option<Token>), HubError> {
    let executor = Executor::page_of_groups(query, token.given, token.group, limit);
    let (rows, last) = hub.fold(executor).await?.finish_page();
    let given = token.given + rows.len() as u64;
    let next = last.map(|group| Token { group: Some(group), given, after: None, of: token.of });
    Ok((rows, next))
}

async fn job_page(
    state: &RestState,
    query: &Query,
    token: Token,
    limit: usize,
) -> Result<(Vec<Value>, Option<Token>), HubError> {
    let left = query.top().map_or(limit as u64, |top| top.saturating_sub(token.given));
    let limit = limit.min(usize::try_from(left).unwrap_or(limit));
    let page = state.jobs.device_rows(query.condition().clone(), limit, token.after.as_deref()).await?;
    let given = token.given + page.items.len() as u64;
    let next = page.continuation.filter(|_| query.top().is_none_or(|top| given < top));
    let rows = page.items.iter().map(|row| row.to_json()).collect();
    Ok((rows, next.map(|after| Token { after: Some(after), given, ..token })))
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
