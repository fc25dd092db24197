//! Tells a receiver elsewhere of what happens to jobs: one POST for each event, signed as Standard Webhooks
//! (<https://www.standardwebhooks.com>) has it.
//!
//! Events are rows of the engine's journal, and so is how far the receiver has been told: none is lost by a restart. They
//! go out one after the other, in their order. The engine waits for none of it.

mod secret;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::error::HubError;
use iothub_protocol::time;
use job_engine::{JobEngine, JobEvent};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Url, redirect};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use secret::{Secret, SecretError};

/// Under this name the journal keeps how far the receiver has been told.
const NAME: &str = "webhook";
/// An event that is not taken by then is given up.
const PATIENCE: TimeDelta = TimeDelta::hours(24);
/// Between the first two tries of an event; twice as long between the next two.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest that a receiver can put the next try off by `Retry-After`.
const LONGEST_RESPITE: Duration = Duration::from_secs(3600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a whole try.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks for events, so that a job that goes fast does not make many.
const PACE: Duration = Duration::from_millis(100);

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("the address is none: {0}")]
    Address(String),
    #[error("the address is neither https:// nor http://")]
    Scheme,
    #[error(
        "the address has a user or a password in it, which would be in lists of processes; the receiver knows by the signature who sends"
    )]
    Credentials,
    #[error("{0} would get events without TLS, where anybody on the way can read them")]
    Plain(String),
    #[error("the address needs TLS, and nobody is trusted")]
    NoTls,
    #[error("there can be no client: {0}")]
    Setup(reqwest::Error),
}

/// Where events go.
pub struct Webhook {
    http: Client,
    url: Url,
    secret: Secret,
}

/// Why a try came to nothing.
#[derive(Debug)]
struct Failure {
    why: String,
    /// How long the receiver wants to be left alone.
    respite: Option<Duration>,
}

impl Webhook {
    /// `tls` says whom to trust; http:// needs none. Unless `allows_plain`, http:// is for this machine alone.
    ///
    /// # Errors
    /// If the address is none that events can go to.
    pub fn new(
        address: &str,
        secret: Secret,
        tls: Option<Arc<ClientConfig>>,
        allows_plain: bool,
    ) -> Result<Webhook, WebhookError> {
        let url = Url::parse(address).map_err(|error| WebhookError::Address(error.to_string()))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(WebhookError::Credentials);
        }
        match url.scheme() {
            "https" if tls.is_none() => return Err(WebhookError::NoTls),
            "https" => {}
            "http" if allows_plain || is_this_machine(&host) => {}
            "http" => return Err(WebhookError::Plain(host)),
            _ => return Err(WebhookError::Scheme),
        }
        let mut http = Client::builder()
            .tls_backend_preconfigured(tls.map_or_else(trusting_nobody, |tls| ClientConfig::clone(&tls)))
            // A receiver that has moved is one that its operator names anew.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .user_agent(concat!("latch/", env!("CARGO_PKG_VERSION")));
        if is_this_machine(&host) {
            http = http.no_proxy();
        }
        Ok(Webhook { http: http.build().map_err(WebhookError::Setup)?, url, secret })
    }

    /// Tell of events until `cancel`, or until the engine has stopped. A new receiver is told of what comes from now on,
    /// one from before of what it has not been told, up to a day back.
    pub async fn run(self, jobs: JobEngine, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            ended = self.tell(&jobs) => if let Err(error) = ended {
                tracing::error!(%error, "the webhook of jobs has stopped");
            },
        }
    }

    async fn tell(&self, jobs: &JobEngine) -> Result<(), HubError> {
        let mut told = jobs.listener(NAME).await?;
        let mut commits = jobs.commits();
        loop {
            commits.mark_unchanged();
            let Some(event) = jobs.next_event(told, PATIENCE).await? else {
                if commits.changed().await.is_err() {
                    return Ok(());
                }
                sleep(PACE).await;
                continue;
            };
            let passed_over = event.number - told - 1;
            if passed_over > 0 {
                tracing::warn!(passed_over, "events are too old to be told, or their jobs are gone");
            }
            self.deliver(&event, &jobs.event_id(&event)).await;
            told = event.number;
            jobs.told(NAME, told).await?;
        }
    }

    /// Try until the receiver takes it, or until it is given up.
    async fn deliver(&self, event: &JobEvent, id: &str) {
        let receiver = self.url.host_str().unwrap_or_default();
        let (job, kind) = (&event.job.request.job_id, event.kind.as_str());
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(Failure { why, respite }) = self.send(event, id, Utc::now()).await else {
                tracing::debug!(receiver, %job, kind, "event delivered");
                return;
            };
            // Not all at the same moment, if many hubs have one receiver.
            let wait = pause.mul_f64(rand::random_range(0.5..1.0)).max(respite.unwrap_or_default());
            if Utc::now() + wait >= event.at + PATIENCE {
                tracing::warn!(receiver, %job, kind, why, "an event is given up: the receiver has not taken it in a day");
                return;
            }
            tracing::warn!(receiver, %job, kind, why, ?wait, "an event was not taken and comes again");
            sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn send(&self, event: &JobEvent, id: &str, now: DateTime<Utc>) -> Result<(), Failure> {
        let (body, timestamp) = (body(event).to_string(), now.timestamp());
        let request = self.http.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        let request = request
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.secret.sign(id, timestamp, &body));
        // An address can be a secret, too.
        let failed = |error: reqwest::Error| Failure { why: innermost(&error.without_url()), respite: None };
        let response = request.body(body).send().await.map_err(failed)?;
        match response.status().is_success() {
            true => Ok(()),
            false => {
                let why = format!("it answered {}", response.status().as_u16());
                Err(Failure { why, respite: respite(response.headers()) })
            }
        }
    }
}

/// For a client that wants to know how it would go about TLS.
fn trusting_nobody() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has what the protocols need")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// What goes out.
fn body(event: &JobEvent) -> Value {
    let mut data = event.details.clone();
    data.insert("job".to_owned(), event.job.to_progress_json());
    json!({"type": format!("job.{}", event.kind), "timestamp": time::format(event.at), "data": data})
}

fn respite(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RESPITE))
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn webhook(address: &str, allows_plain: bool) -> Result<Webhook, WebhookError> {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        Webhook::new(address, secret, Some(Arc::new(trusting_nobody())), allows_plain)
    }

    #[test]
    fn events_go_nowhere_in_the_clear_unless_told() {
        for address in [
            "https://example.com/hook?team=7",
            "http://localhost:8080/",
            "http://127.0.0.1:8080/x",
            "http://127.8.8.8/",
            "http://[::1]:80/",
        ] {
            assert!(webhook(address, false).is_ok(), "{address}");
        }
        for address in ["http://example.com/", "http://10.0.0.1/", "http://localhost.example.com/", "http://0.0.0.0/"] {
            assert!(matches!(webhook(address, false), Err(WebhookError::Plain(_))), "{address}");
            assert!(webhook(address, true).is_ok(), "{address}");
        }
        assert!(matches!(webhook("ftp://example.com/", true), Err(WebhookError::Scheme)));
        assert!(matches!(webhook("example.com", true), Err(WebhookError::Address(_))));
        for address in ["https://ann@example.com/", "https://:hush@example.com/"] {
            let refused = webhook(address, true).map(drop).map_err(|error| error.to_string());
            assert!(refused.is_err_and(|text| !text.contains("hush")), "{address}");
        }
    }

    #[test]
    fn a_receiver_is_left_alone_for_an_hour_at_most() {
        let headers = |text: &'static str| HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
        assert_eq!(respite(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(respite(&headers("99999999")), Some(LONGEST_RESPITE));
        assert_eq!(respite(&headers("Thu, 24 Dec 2026 18:00:00 GMT")), None);
        assert_eq!(respite(&HeaderMap::new()), None);
    }
}
