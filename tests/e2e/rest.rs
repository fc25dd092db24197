//! The hub's REST API as any HTTP client meets it: whatever method, path, token and body.

use std::path::Path;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use iothub_protocol::connection_string::ServiceConnectionString;
use iothub_protocol::error::HubError;
use reqwest::{Client, Method, StatusCode};
use rustls::ClientConfig;
use tokio::runtime::{Builder, Runtime};

use crate::back_end;

/// No refusal takes long.
const ANSWER_BOUND: Duration = Duration::from_secs(20);

pub(crate) struct Rest {
    runtime: Runtime,
    http: Client,
    pub(crate) owner: ServiceConnectionString,
}

/// What to send.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) target: &'a str,
    pub(crate) headers: Vec<(&'a str, String)>,
    pub(crate) body: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    /// The header `iothub-errorcode`.
    pub(crate) error_code: String,
    /// What a client makes of status and body.
    pub(crate) error: HubError,
}

impl Rest {
    pub(crate) fn of(data: &Path) -> Rest {
        let tls = ClientConfig::clone(&back_end::tls(data));
        let http = Client::builder().tls_backend_preconfigured(tls).timeout(ANSWER_BOUND).build();
        Rest {
            runtime: Builder::new_current_thread().enable_all().build().expect("a thread can be used"),
            http: http.expect("the TLS settings are usable"),
            owner: back_end::connection(data),
        }
    }

    /// The header that the hub's owner sends.
    pub(crate) fn owner_token(&self) -> String {
        self.token(&self.owner, TimeDelta::hours(1))
    }

    /// The header of whoever has `connection`, good for so long.
    pub(crate) fn token(&self, connection: &ServiceConnectionString, lifetime: TimeDelta) -> String {
        connection.key.sign(&self.owner.host.authority(), Some(&connection.policy), Utc::now() + lifetime)
    }

    pub(crate) fn send(&self, request: Request<'_>) -> Reply {
        let url = format!("https://{}{}", self.owner.host.authority(), request.target);
        let mut call = self.http.request(request.method, url);
        for (name, value) in request.headers {
            call = call.header(name, value);
        }
        let target = request.target;
        self.runtime.block_on(async {
            let response = call.body(request.body).send().await.unwrap_or_else(|error| panic!("{target}: {error:?}"));
            let status = response.status();
            let error_code = response.headers().get("iothub-errorcode");
            let error_code = error_code.and_then(|code| code.to_str().ok()).unwrap_or_default().to_owned();
            let body = response.text().await.unwrap_or_else(|error| panic!("{target}: {error:?}"));
            Reply { status, error_code, error: HubError::from_response(status.as_u16(), &body) }
        })
    }
}
