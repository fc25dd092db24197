//! Sends the calls.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::connection_string::{
    self, ConnectionStringError, DeviceCredentials, HostName, ServiceConnectionString,
};
use iothub_protocol::error::HubError;
use iothub_protocol::id::{ConfigurationId, DeviceId, JobId, ModuleId, TemplateName};
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::job::targets::{ListPart, ListSeal};
use iothub_protocol::job::{JobRequest, TwinUpdate};
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::sas::SharedKey;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, redirect};
use rustls::{ClientConfig, RootCertStore, crypto};
use serde_json::{Map, Value};
use tracing::debug;

use crate::error::{Failure, FailureKind, Problem, ServiceError};
use crate::events::JobEvents;
use crate::request::{JobFilter, PageRequest, ServiceRequest};

#[cfg(test)]
mod tests;

/// Signed for an hour, as the SDKs do, and used for most of it: a token made for each call costs more than it gains.
const TOKEN_LIFETIME: TimeDelta = TimeDelta::minutes(60);
const TOKEN_RESERVE: TimeDelta = TimeDelta::minutes(10);
/// How often a call is sent in all while the hub is throttling or unavailable.
const ATTEMPTS: u32 = 4;
/// The longest wait between two of them, whatever the hub asks for: someone is waiting at the other end.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection without a call is kept: less than hubs do (Latch's 30 s), as a call that meets the other end's
/// goodbye is lost, and perhaps was carried out.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A client of one hub. Connections are kept and shared by all who hold a reference.
#[derive(Debug)]
pub struct ServiceClient {
    http: reqwest::Client,
    /// As errors name it.
    host: HostName,
    /// What stands before a request's target.
    base: String,
    /// `None` where whoever gets through may ask.
    signer: Option<Signer>,
}

/// Makes tokens with one policy's key.
#[derive(Debug)]
struct Signer {
    policy: String,
    key: SharedKey,
    token: Mutex<Option<Token>>,
}

#[derive(Debug, Clone)]
struct Token {
    /// Marked sensitive: never shown.
    header: HeaderValue,
    expiry: DateTime<Utc>,
}

/// One page of a long answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub items: Vec<Value>,
    /// For [`PageRequest::continuation`]; `None` on the last page.
    pub continuation: Option<String>,
    /// `Twin`, `DeviceJob`, `JobResponse` or `Raw`; only queries have one.
    pub item_type: Option<String>,
}

impl ServiceClient {
    /// Without a port in the connection string it is 443. No connection is made yet.
    ///
    /// # Errors
    /// [`ServiceError::Setup`] if the TLS settings cannot be used.
    pub fn new(connection: ServiceConnectionString, tls: Arc<ClientConfig>) -> Result<ServiceClient, ServiceError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&tls))
            .https_only(true)
            .redirect(redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(concat!("latch/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ServiceError::Setup)?;
        let ServiceConnectionString { host, policy, key } = connection;
        let base = format!("https://{}", host.authority());
        Ok(ServiceClient { http, host, base, signer: Some(Signer { policy, key, token: Mutex::new(None) }) })
    }

    /// A client of whoever serves a part of the API on a Unix socket, which whoever reaches it may ask. `name` is how
    /// errors call it.
    ///
    /// # Errors
    /// [`ServiceError::Setup`] if there can be no client.
    pub fn over_socket(socket: &Path, name: &str) -> Result<ServiceClient, ServiceError> {
        // Without TLS there is nobody to trust; but the client wants to know how it would go about it.
        let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has what the protocols need")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .unix_socket(socket)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("latch/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ServiceError::Setup)?;
        let host = HostName { name: name.to_owned(), port: None };
        // Nobody looks the name up.
        Ok(ServiceClient { http, host, base: "http://latch".to_owned(), signer: None })
    }

    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Register a device or a module; the hub makes the keys that are not given. The identity, with keys.
    pub async fn create_identity(&self, address: &Address, identity: &IdentityRequest) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::create_identity(address, identity)).await
    }

    /// The identity, with keys.
    pub async fn get_identity(&self, address: &Address) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::get_identity(address)).await
    }

    /// Without an etag, whatever its state. A device goes with its modules.
    pub async fn delete_identity(&self, address: &Address, etag: Option<&str>) -> Result<(), ServiceError> {
        self.send(&ServiceRequest::delete_identity(address, etag)).await.map(|_| ())
    }

    /// The identities of a device's modules, with keys; there are no pages.
    pub async fn list_modules(&self, device: &DeviceId) -> Result<Vec<Value>, ServiceError> {
        Ok(self.page(ServiceRequest::list_modules(device)).await?.items)
    }

    /// Remove all cloud-to-device messages from a device's queue; the answer says how many there were.
    pub async fn purge_messages(&self, device: &DeviceId) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::purge_messages(device)).await
    }

    /// All devices, as twins.
    pub async fn list_devices(&self, page: &PageRequest) -> Result<Page, ServiceError> {
        self.query("SELECT * FROM devices", page).await
    }

    pub async fn get_twin(&self, address: &Address) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::get_twin(address)).await
    }

    /// Merge into tags and desired properties; the whole twin after that. With an etag, only if the twin still has it.
    pub async fn patch_twin(
        &self,
        address: &Address,
        update: &TwinUpdate,
        etag: Option<&str>,
    ) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::patch_twin(address, update, etag)).await
    }

    /// Any status of the device or module is a result; an error means that there is no answer of it.
    pub async fn invoke_method(
        &self,
        address: &Address,
        method: &DirectMethod,
    ) -> Result<MethodResponse, ServiceError> {
        let request = ServiceRequest::invoke_method(address, method);
        let (_, body) = self.send(&request).await?;
        decode(&request, &body)
    }

    pub async fn query(&self, query: &str, page: &PageRequest) -> Result<Page, ServiceError> {
        self.page(ServiceRequest::query(query, page)).await
    }

    /// All pages of a query.
    pub async fn query_all(&self, query: &str) -> Result<Vec<Value>, ServiceError> {
        let mut items = Vec::new();
        let mut next = PageRequest { max_items: Some(1000), continuation: None };
        loop {
            let page = self.query(query, &next).await?;
            items.extend(page.items);
            match page.continuation {
                Some(continuation) => next.continuation = Some(continuation),
                None => return Ok(items),
            }
        }
    }

    /// `{"jobId", "type", "status"}`.
    pub async fn create_job(&self, job: &JobRequest) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::create_job(job)).await
    }

    pub async fn get_job(&self, job: &JobId) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::get_job(job)).await
    }

    pub async fn cancel_job(&self, job: &JobId) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::cancel_job(job)).await
    }

    /// Begin nothing new on any device. Like the next three, for the embedded hub: Azure has no such request.
    pub async fn pause_job(&self, job: &JobId, reason: &str) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::pause_job(job, reason)).await
    }

    pub async fn resume_job(&self, job: &JobId) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::resume_job(job)).await
    }

    /// Go on to the next stage, if the one that went well is `stage`, or whichever it is.
    pub async fn approve_job(&self, job: &JobId, stage: Option<u32>) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::approve_job(job, stage)).await
    }

    /// Make a job like another; with `failed`, for those of its devices that failed so, in any way if there is no class.
    pub async fn clone_job(
        &self,
        source: &JobId,
        job: &JobId,
        start_time: Option<DateTime<Utc>>,
        failed: Option<&[FailureClass]>,
    ) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::clone_job(source, job, start_time, failed)).await
    }

    /// How a job's devices stand, by the groups that its policy makes.
    pub async fn job_report(&self, job: &JobId) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::job_report(job)).await
    }

    /// Follow a job; for the embedded hub, Azure has no such stream. `None` if it has ended and its last event was seen.
    pub async fn job_events(&self, job: &JobId, after: Option<&str>) -> Result<Option<JobEvents>, ServiceError> {
        let request = ServiceRequest::job_events(job, after);
        let response = self.send_once(&request).await.map_err(|error| self.transport(&error))?;
        match response.status() {
            StatusCode::OK => Ok(Some(JobEvents::new(self.host.authority(), response))),
            StatusCode::NO_CONTENT => Ok(None),
            status => {
                let body = response.text().await.map_err(|error| self.transport(&error))?;
                Err(HubError::from_response(status.as_u16(), &body).into())
            }
        }
    }

    /// What a job would come to; for the embedded hub, as the next two. `body` is that of the job.
    pub async fn preview_job(&self, body: Value) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::preview_job(body)).await
    }

    /// Every attempt at a job's devices. For the embedded hub, as the next three.
    pub async fn job_attempts(&self, job: &JobId, page: &PageRequest) -> Result<Page, ServiceError> {
        self.page(ServiceRequest::job_attempts(job, page)).await
    }

    /// The attempts at one device or module of a job; there are no pages.
    pub async fn device_attempts(&self, job: &JobId, address: &Address) -> Result<Vec<Value>, ServiceError> {
        Ok(self.page(ServiceRequest::device_attempts(job, address)).await?.items)
    }

    /// Who did what to a job, or to any; the newest first.
    pub async fn job_audit(&self, job: Option<&JobId>, page: &PageRequest) -> Result<Page, ServiceError> {
        self.page(ServiceRequest::job_audit(job, page)).await
    }

    /// Whether the whole audit trail holds, and where it does not.
    pub async fn check_audit(&self) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::check_audit()).await
    }

    /// Some of the list of a job that waits for one; a part that comes again changes nothing.
    pub async fn extend_list(&self, job: &JobId, part: &ListPart) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::extend_list(job, part)).await
    }

    /// A job's list is whole, and the job may begin. The job.
    pub async fn complete_list(&self, job: &JobId, seal: &ListSeal) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::complete_list(job, seal)).await
    }

    /// Keep a template of jobs. Like the next four, for the embedded hub.
    pub async fn put_template(&self, name: &TemplateName, body: Value) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::put_template(name, body)).await
    }

    pub async fn template(&self, name: &TemplateName) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::template(name)).await
    }

    /// A list of them all.
    pub async fn templates(&self) -> Result<Value, ServiceError> {
        Ok(Value::Array(self.page(ServiceRequest::templates()).await?.items))
    }

    pub async fn delete_template(&self, name: &TemplateName) -> Result<(), ServiceError> {
        self.send(&ServiceRequest::delete_template(name)).await.map(|_| ())
    }

    /// Make a job of a template.
    pub async fn run_template(
        &self,
        name: &TemplateName,
        job: &JobId,
        parameters: &Map<String, Value>,
    ) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::run_template(name, job, parameters)).await
    }

    pub async fn query_jobs(&self, filter: JobFilter<'_>, page: &PageRequest) -> Result<Page, ServiceError> {
        self.page(ServiceRequest::query_jobs(filter, page)).await
    }

    /// Each device's row of a job.
    pub async fn device_jobs(&self, job: &JobId, page: &PageRequest) -> Result<Page, ServiceError> {
        self.page(ServiceRequest::device_jobs(job, page)).await
    }

    /// A device's or module's row of a job, if it is one of the job's.
    pub async fn device_job(&self, job: &JobId, address: &Address) -> Result<Option<Value>, ServiceError> {
        let rows = self.page(ServiceRequest::device_job(job, address)).await?.items;
        let is_module = address.is_module();
        Ok(rows.into_iter().find(|row| row["moduleId"].is_null() != is_module))
    }

    /// The hub applies it to the devices that it targets from then on.
    pub async fn create_configuration(
        &self,
        id: &ConfigurationId,
        configuration: Value,
    ) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::create_configuration(id, configuration)).await
    }

    pub async fn get_configuration(&self, id: &ConfigurationId) -> Result<Value, ServiceError> {
        self.object(ServiceRequest::get_configuration(id)).await
    }

    /// All of them; there are no pages.
    pub async fn list_configurations(&self) -> Result<Vec<Value>, ServiceError> {
        Ok(self.page(ServiceRequest::list_configurations()).await?.items)
    }

    /// Without an etag, whatever its state. Devices keep what it has set.
    pub async fn delete_configuration(&self, id: &ConfigurationId, etag: Option<&str>) -> Result<(), ServiceError> {
        self.send(&ServiceRequest::delete_configuration(id, etag)).await.map(|_| ())
    }

    async fn object(&self, request: ServiceRequest) -> Result<Value, ServiceError> {
        let (_, body) = self.send(&request).await?;
        decode::<Map<String, Value>>(&request, &body).map(Value::Object)
    }

    async fn page(&self, request: ServiceRequest) -> Result<Page, ServiceError> {
        let (headers, body) = self.send(&request).await?;
        read_page(&request, &headers, &body)
    }

    /// Headers and body of a successful answer.
    ///
    /// A throttled call was not carried out, so it may always be sent again; one that met an unavailable hub perhaps
    /// was.
    async fn send(&self, request: &ServiceRequest) -> Result<(HeaderMap, Vec<u8>), ServiceError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let failure = match self.attempt(request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let again = match failure.kind {
                FailureKind::Throttled => true,
                FailureKind::Unavailable => request.repeatable,
                _ => false,
            };
            if !again || attempt >= ATTEMPTS {
                return Err(failure.error);
            }
            let wait = wait_before_retry(failure.retry_after, attempt);
            debug!(target = request.target, error = %failure.error, ?wait, "sent again after a wait");
            tokio::time::sleep(wait).await;
        }
    }

    /// Send once: headers and body of a successful answer.
    pub(crate) async fn attempt(&self, request: &ServiceRequest) -> Result<(HeaderMap, Vec<u8>), Failure> {
        let response = self.send_once(request).await.map_err(|error| {
            // Of a connection that was never there, nothing has come through.
            let kind = if error.is_connect() { FailureKind::NotSent } else { FailureKind::Lost };
            Failure { error: self.transport(&error), kind, retry_after: None }
        })?;
        let status = response.status();
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(|error| {
            let error = self.transport(&error);
            Failure { error, kind: FailureKind::Lost, retry_after: None }
        })?;
        if status.is_success() {
            return Ok((headers, body.into()));
        }
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => FailureKind::Throttled,
            StatusCode::SERVICE_UNAVAILABLE => FailureKind::Unavailable,
            status if status.is_server_error() => FailureKind::Broken,
            _ => FailureKind::Refused,
        };
        let error = HubError::from_response(status.as_u16(), &String::from_utf8_lossy(&body)).into();
        Err(Failure { error, kind, retry_after: retry_after(&headers) })
    }

    async fn send_once(&self, request: &ServiceRequest) -> Result<Response, reqwest::Error> {
        let url = format!("{}{}", self.base, request.target);
        let mut call = self.http.request(request.method.clone(), url).timeout(request.timeout);
        if let Some(signer) = &self.signer {
            call = call.header(AUTHORIZATION, signer.authorization(&self.host, Utc::now()));
        }
        for (name, value) in &request.headers {
            call = call.header(*name, value);
        }
        if let Some(body) = &request.body {
            call = call.header(CONTENT_TYPE, "application/json; charset=utf-8").body(body.to_string());
        }
        call.send().await
    }

    fn transport(&self, error: &reqwest::Error) -> ServiceError {
        ServiceError::Transport { host: self.host.authority(), problem: Problem::of(error) }
    }
}

impl Signer {
    fn authorization(&self, host: &HostName, now: DateTime<Utc>) -> HeaderValue {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        match &*token {
            Some(token) if now + TOKEN_RESERVE < token.expiry => token.header.clone(),
            _ => {
                let expiry = now + TOKEN_LIFETIME;
                let text = self.key.sign(&host.authority(), Some(&self.policy), expiry);
                let mut header = HeaderValue::from_str(&text).expect("a token is percent-encoded ASCII");
                header.set_sensitive(true);
                *token = Some(Token { header: header.clone(), expiry });
                header
            }
        }
    }
}

/// The connection string of the device or module with this identity, key included: for a file with mode 0600 and nowhere
/// else. `host` is as its MQTT side has it, which may be another port.
///
/// # Errors
/// If the registry's answer holds no ids, or no key where there should be one.
pub fn client_connection(identity: &Value, host: &HostName) -> Result<String, ConnectionStringError> {
    let text = |pointer: &str| identity.pointer(pointer).and_then(Value::as_str);
    let device = DeviceId::parse(text("/deviceId").unwrap_or_default())?;
    let address = match text("/moduleId") {
        None => Address::from(device),
        Some(module) => Address::of_module(device, ModuleId::parse(module)?),
    };
    let credentials = match text("/authentication/type") {
        Some("selfSigned" | "certificateAuthority") => DeviceCredentials::X509,
        _ => {
            let key = text("/authentication/symmetricKey/primaryKey").unwrap_or_default();
            DeviceCredentials::Key(SharedKey::parse(key)?)
        }
    };
    Ok(connection_string::reveal(host, &address, &credentials))
}

/// The wait that a hub asks for.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// What the hub asks for, else 1 s, 2 s, 4 s.
fn wait_before_retry(asked: Option<Duration>, attempt: u32) -> Duration {
    asked.unwrap_or_else(|| Duration::from_secs(1 << (attempt - 1).min(5))).min(LONGEST_WAIT)
}

pub(crate) fn read_page(request: &ServiceRequest, headers: &HeaderMap, body: &[u8]) -> Result<Page, ServiceError> {
    let items = decode(request, body)?;
    let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
    let continuation = header("x-ms-continuation").filter(|text| !text.is_empty());
    Ok(Page { items, continuation, item_type: header("x-ms-item-type") })
}

pub(crate) fn decode<T: serde::de::DeserializeOwned>(request: &ServiceRequest, body: &[u8]) -> Result<T, ServiceError> {
    serde_json::from_slice(body).map_err(|error| ServiceError::Decode {
        call: format!("{} {}", request.method, request.target),
        reason: format!("cannot be read: {error}"),
    })
}
