//! Whom a request's address names.

use axum::extract::{self, FromRequestParts};
use axum::http::request::Parts;
use iothub_protocol::address::Address;
use iothub_protocol::id::{DeviceId, IdError, ModuleId};
use job_api::extract::refusal;
pub(super) use job_api::extract::{Path, Query};
use serde::Deserialize;

use super::reply::Refusal;

/// The device or the module that a path names, decoded and not yet looked at.
#[derive(Deserialize)]
pub(super) struct Target {
    id: String,
    module: Option<String>,
}

impl Target {
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
