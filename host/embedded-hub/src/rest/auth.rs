//! Who asks, and whether they may.

use axum::http::{HeaderMap, header};
use chrono::Utc;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::sas::Token;

use super::RestState;
use super::reply::header_text;
use crate::policy::{Policy, Rights};

impl RestState {
    /// The name of the policy whose key has signed the request's token, if it has these rights.
    ///
    /// # Errors
    /// 401003 without a valid token, 401002 without the rights. The texts never hold any of the token.
    pub(super) fn authorize(&self, headers: &HeaderMap, rights: Rights) -> Result<&str, HubError> {
        match header_text(headers, &header::AUTHORIZATION) {
            Some(header) => self.authorize_token(header, rights),
            None => Err(unauthorized("Authorization header missing")),
        }
    }

    /// Whether the request's token is of any policy.
    pub(super) fn knows(&self, headers: &HeaderMap) -> bool {
        let token = header_text(headers, &header::AUTHORIZATION).and_then(|text| Token::parse(text).ok());
        token.is_some_and(|token| self.signer(&token).is_ok())
    }

    /// As [`RestState::authorize`], for a token wherever it came from.
    pub(super) fn authorize_token(&self, token: &str, rights: Rights) -> Result<&str, HubError> {
        let token = Token::parse(token).map_err(|e| unauthorized(&e.to_string()))?;
        let policy = self.signer(&token)?;
        let registry_only = Rights::SERVICE_CONNECT != rights;
        if !(token.covers_hub() || registry_only && token.covers_registry()) {
            return Err(unauthorized("the token is for another resource"));
        }
        if !policy.rights.contains(rights) {
            let text = format!("Authorization rule '{}' does not allow access for this operation", policy.name);
            return Err(HubError::new(ErrorCode::IotHubUnauthorizedAccess, text));
        }
        Ok(&policy.name)
    }

    /// The policy that has signed a token which still counts.
    fn signer(&self, token: &Token<'_>) -> Result<&Policy, HubError> {
        let policy = token.policy().and_then(|name| self.policies.iter().find(|policy| policy.name == name));
        let policy = policy
            .filter(|policy| policy.signed(token))
            .ok_or_else(|| unauthorized("the token is not signed with a key of this hub's policies"))?;
        if token.is_expired(Utc::now()) {
            return Err(unauthorized("the token has expired"));
        }
        Ok(policy)
    }
}

fn unauthorized(text: &str) -> HubError {
    HubError::new(ErrorCode::IotHubUnauthorized, text)
}
