//! `/devices/query`: pages of rows, found by walking the devices or modules in order of their ids.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::query::{Executor, Query, Source};
use job_api::query::{Asked, Token, job_rows, page};
use serde_json::Value;

use super::RestState;
use super::reply::Refusal;
use crate::driver::HubHandle;
use crate::policy::Rights;
use crate::scan::Walk;

pub(super) async fn run(State(state): State<RestState>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    state.authorize(&headers, Rights::SERVICE_CONNECT)?;
    let asked = Asked::read(&headers, body).await?;
    let item_type = asked.query.item_type();
    let (rows, next) = match asked.query.source() {
        Source::Jobs => job_rows(&state.jobs, asked).await?,
        Source::Devices | Source::Modules if asked.query.is_aggregate() => {
            group_page(&state.hub, Arc::new(asked.query), asked.token, asked.limit).await?
        }
        Source::Devices | Source::Modules => twin_page(&state.hub, &asked.query, asked.token, asked.limit).await?,
    };
    Ok(page(item_type, rows, next.as_ref()))
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
