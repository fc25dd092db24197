//! Parts of a request's address. As axum's, but a refusal has the hub's envelope instead of plain text.

use axum::extract::{self, FromRequestParts};
use axum::http::request::Parts;
use iothub_protocol::error::{ErrorCode, HubError};
use serde::de::DeserializeOwned;

use crate::reply::Refusal;

/// A part of the path, decoded.
pub struct Path(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path, Refusal> {
        let extracted = extract::Path::from_request_parts(parts, state).await;
        extracted.map(|extract::Path(part)| Path(part)).map_err(|e| refusal(e.body_text()))
    }
}

/// What stands after the question mark.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Refusal> {
        let extracted = extract::Query::from_request_parts(parts, state).await;
        extracted.map(|extract::Query(query)| Query(query)).map_err(|e| refusal(e.body_text()))
    }
}

/// Of an address that cannot be read.
pub fn refusal(text: String) -> Refusal {
    HubError::new(ErrorCode::ArgumentInvalid, text).into()
}
