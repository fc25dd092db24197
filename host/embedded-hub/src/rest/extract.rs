//! Parts of a request's address. As axum's, but a refusal has the hub's envelope instead of plain text.

use axum::extract::{self, FromRequestParts};
use axum::http::request::Parts;
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::{DeviceId, IdError, ModuleId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::reply::Refusal;

/// A part of the path, decoded.
pub(super) struct Path(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path, Refusal> {
        let extracted = extract::Path::from_request_parts(parts, state).await;
        extracted.map(|extract::Path(part)| Path(part)).map_err(|e| refusal(e.body_text()))
    }
}

/// The device or the module that a path names, decoded and not yet looked at.
#[derive(Deserialize)]
pub(super) struct Target {
    id: String,
    module: Option<String>,
    job: Option<String>,
}

impl Target {
    /// The job of whose devices it is one, where the path names a job.
    pub(super) fn job(&self) -> Option<&str> {
        self.job.as_deref()
    }

    /// # Errors
    /// Says which of the ids is none.
    pub(super) fn address(&self) -> Result<Address, IdError> {
        let device = DeviceId::parse(&self.id)?;
        match &self.module {
            None => Ok(device.into()),
            Some(module) => Ok(Address::of_module(device, ModuleId::parse(module)?)),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Target, Refusal> {
        let extracted = extract::Path::from_request_parts(parts, state).await;
        extracted.map(|extract::Path(target)| target).map_err(|e| refusal(e.body_text()))
    }
}

/// What stands after the question mark.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Refusal> {
        let extracted = extract::Query::from_request_parts(parts, state).await;
        extracted.map(|extract::Query(query)| Query(query)).map_err(|e| refusal(e.body_text()))
    }
}

fn refusal(text: String) -> Refusal {
    HubError::new(ErrorCode::ArgumentInvalid, text).into()
}
