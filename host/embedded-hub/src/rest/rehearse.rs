//! Where back ends' requests meet what is rehearsed: throttles, quota and limits of a tier, a silent or a slow hub.

use std::collections::BTreeSet;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use chrono::Utc;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::DeviceId;
use iothub_protocol::job::JobStatus;
use iothub_protocol::query::{Query, Source};
use job_engine::JobFilter;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::reply::{Refusal, read_body};
use super::serve::Peer;
use super::{RestState, messages};
use crate::hub::Credentials;
use crate::policy::Rights;
use crate::rehearsal::meter::Admission;
use iothub_protocol::quota::tier::{Class, METHOD_STEP, Sku};

/// Let a request through when its time has come, or refuse it.
pub(super) async fn admit(State(state): State<RestState>, request: Request, next: Next) -> Response {
    let rehearsal = state.hub.rehearsal();
    if rehearsal.is_off() {
        return next.run(request).await;
    }
    rehearsal.heard().await;
    let response = match rehearsal.sku() {
        Some(sku) => limited(&state, sku, request, next).await,
        None => next.run(request).await,
    };
    if let Some(late) = rehearsal.lateness(None) {
        tokio::time::sleep(late).await;
    }
    // It may have begun while the request was in hand.
    rehearsal.heard().await;
    response
}

async fn limited(state: &RestState, sku: Sku, request: Request, next: Next) -> Response {
    let rehearsal = state.hub.rehearsal();
    let Some(class) = class(request.method(), request.uri().path()) else { return next.run(request).await };
    // Who may not ask is refused all the same, and takes nothing of what others may.
    let asker = asker(class, &request);
    if !may_ask(state, asker, request.headers().clone()).await {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let body = match read_body(body).await {
        Ok(body) => body,
        Err(error) => return Refusal::from(error).into_response(),
    };
    let sent = meant(class, &body);
    let amount = if class == Class::Methods { metered(sent) } else { 1 };
    if let Err(refused) = rehearsal.pass(class, amount).await {
        return refusal(class, refused);
    }
    let turn = match creation(class, &head.method, head.uri.path(), head.headers.contains_key(header::IF_MATCH)) {
        None => None,
        // One after the other, so that two do not both see the last free place.
        Some(creation) => {
            let turn = rehearsal.turn().await;
            if let Err(error) = has_room(state, sku, creation, &body).await {
                return Refusal::from(error).into_response();
            }
            Some(turn)
        }
    };
    let response = next.run(Request::from_parts(head, Body::from(body.clone()))).await;
    drop(turn);
    for size in costs(class, sent, &body, &response) {
        rehearsal.charge(|| size);
    }
    response
}

/// Who asks for something that is throttled.
enum Asker {
    /// A policy that must have these rights.
    Policy(Rights),
    /// A device that shows this.
    Device(DeviceId, Credentials),
    /// Nobody who could be let through.
    Nobody,
}

fn asker(class: Class, request: &Request) -> Asker {
    let path = request.uri().path();
    if let Some(rights) = rights(class, request.method(), path) {
        return Asker::Policy(rights);
    }
    let id = path.trim_matches('/').split('/').nth(1).map(percent_decode_str);
    let id = id.and_then(|id| DeviceId::parse(&id.decode_utf8().ok()?).ok());
    let peer = request.extensions().get::<Peer>().cloned();
    let credentials = peer.and_then(|peer| messages::credentials(peer, request.headers()).ok());
    id.zip(credentials).map_or(Asker::Nobody, |(id, credentials)| Asker::Device(id, credentials))
}

/// Whether the request will be let through by who answers it.
async fn may_ask(state: &RestState, asker: Asker, headers: HeaderMap) -> bool {
    match asker {
        Asker::Policy(rights) => state.authorize(&headers, rights).is_ok(),
        Asker::Device(id, credentials) => state.hub.admits(id.into(), credentials).await,
        Asker::Nobody => false,
    }
}

/// What a policy must be for; none where devices ask.
fn rights(class: Class, method: &Method, path: &str) -> Option<Rights> {
    match class {
        Class::CloudReceives | Class::Telemetry => None,
        Class::Registry if path.trim_matches('/') == "statistics/service" => Some(Rights::SERVICE_CONNECT),
        Class::Registry if method == Method::GET => Some(Rights::REGISTRY_READ),
        Class::Registry => Some(Rights::REGISTRY_WRITE),
        Class::Configurations if matches!(*method, Method::PUT | Method::DELETE) => Some(Rights::REGISTRY_WRITE),
        Class::Configurations => Some(Rights::REGISTRY_READ),
        _ => Some(Rights::SERVICE_CONNECT),
    }
}

/// Which throttle a request is under; none for those that Azure's table does not name.
fn class(method: &Method, path: &str) -> Option<Class> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (parts.as_slice(), method) {
        (["devices", "query"], _) => Some(Class::Queries),
        (["devices", _, "messages", "events"], _) => Some(Class::Telemetry),
        (["devices", _, "messages", _], &Method::GET) => Some(Class::CloudReceives),
        (["devices"] | ["devices", _] | ["devices", _, "modules", ..] | ["statistics", _], _) => Some(Class::Registry),
        (["twins", _, "methods"] | ["twins", _, "modules", _, "methods"], _) => Some(Class::Methods),
        (["twins", ..], &Method::GET) => Some(Class::TwinReads),
        (["twins", ..], _) => Some(Class::TwinUpdates),
        (["jobs", ..], _) => Some(Class::Jobs),
        (["configurations", ..], _) => Some(Class::Configurations),
        _ => None,
    }
}

/// What a tier has only so many of.
enum Creation {
    Device,
    Devices,
    Job,
}

fn creation(class: Class, method: &Method, path: &str, has_if_match: bool) -> Option<Creation> {
    let depth = path.trim_matches('/').split('/').count();
    match (class, method, depth) {
        // With a condition it is an update. A module counts as a device.
        (Class::Registry, &Method::PUT, 2 | 4) if !has_if_match => Some(Creation::Device),
        (Class::Registry, &Method::POST, 1) => Some(Creation::Devices),
        (Class::Jobs, &Method::PUT, 3) => Some(Creation::Job),
        _ => None,
    }
}

async fn has_room(state: &RestState, sku: Sku, creation: Creation, body: &Bytes) -> Result<(), HubError> {
    match creation {
        Creation::Job => has_room_for_job(state, sku).await,
        Creation::Device => has_room_for_devices(state, sku, 1).await,
        Creation::Devices => {
            let items: Vec<Value> = serde_json::from_slice(body).unwrap_or_default();
            let creates =
                |item: &&Value| item["importMode"].as_str().unwrap_or("create").eq_ignore_ascii_case("create");
            has_room_for_devices(state, sku, items.iter().filter(creates).count()).await
        }
    }
}

async fn has_room_for_devices(state: &RestState, sku: Sku, more: usize) -> Result<(), HubError> {
    let counts = state.hub.counts().await?;
    let present = counts.total + counts.modules;
    if more == 0 || present + more <= sku.devices() {
        return Ok(());
    }
    Err(too_many_devices(sku, present))
}

/// 413002, for a hub that has so many devices and modules.
pub(super) fn too_many_devices(sku: Sku, count: usize) -> HubError {
    let (tier, most) = (sku.tier(), sku.devices());
    let text = format!("a hub of the tier {tier} has at most {most} devices and modules, and this one has {count}");
    HubError::new(ErrorCode::TooManyDevices, text)
}

/// A job that waits for its time to come is not an active one.
async fn has_room_for_job(state: &RestState, sku: Sku) -> Result<(), HubError> {
    let (limit, mut active) = (sku.concurrent_jobs(), BTreeSet::new());
    // In the order in which jobs have them, so that none slips through between the two; it may be in both.
    for status in [JobStatus::Queued, JobStatus::Running] {
        let filter = JobFilter { job_type: None, status: Some(status) };
        let page = state.jobs.list(filter, 100, None).await?;
        let now = Utc::now();
        active.extend(page.items.into_iter().filter(|job| job.start_time <= now).map(|job| job.request.job_id));
    }
    if active.len() < limit {
        return Ok(());
    }
    let text = format!(
        "The maximum number of active jobs, {limit} on a hub of the tier {}, is reached. Wait until one has ended.",
        sku.tier()
    );
    Err(HubError::new(ErrorCode::ThrottlingMaxActiveJobCountExceeded, text))
}

/// The bytes of what the caller means; of a method call that is the payload.
fn meant(class: Class, body: &[u8]) -> usize {
    match class {
        Class::Methods => payload_size(body),
        _ => body.len(),
    }
}

fn payload_size(body: &[u8]) -> usize {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body.get("payload").filter(|payload| !payload.is_null()).map_or(0, |payload| payload.to_string().len())
}

/// In whole steps, of which there is at least one.
fn metered(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(METHOD_STEP).max(1) * METHOD_STEP
}

/// The sizes of what counts against the day's quota, by Azure's table of charges per operation.
fn costs(class: Class, sent: usize, body: &[u8], response: &Response) -> Vec<usize> {
    let status = response.status();
    let received = response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
    match class {
        Class::Methods if status.is_success() => vec![sent, received],
        // The answer that the device is not there is a message, too.
        Class::Methods if status == StatusCode::NOT_FOUND => vec![sent, 0],
        _ if !status.is_success() => vec![],
        Class::TwinReads => vec![received],
        Class::TwinUpdates | Class::Telemetry => vec![sent],
        Class::Queries if !is_about_jobs(body) => vec![received],
        _ => vec![],
    }
}

fn is_about_jobs(body: &[u8]) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let query = body["query"].as_str().map(Query::parse);
    matches!(query, Some(Ok(query)) if query.source() == Source::Jobs)
}

/// 429 says after how many seconds to come again.
fn refusal(class: Class, refused: Admission) -> Response {
    let Some(error) = refused.refusal() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let refusal = if class == Class::Methods { Refusal::of_method(error, None) } else { error.into() };
    let mut response = refusal.into_response();
    if let Admission::Throttled { retry_after, .. } = refused {
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_route_has_its_class() {
        for (method, path, expected) in [
            (Method::GET, "/devices/", Some(Class::Registry)),
            (Method::POST, "/devices", Some(Class::Registry)),
            (Method::PUT, "/devices/query-1", Some(Class::Registry)),
            (Method::PUT, "/devices/d/modules/m", Some(Class::Registry)),
            (Method::GET, "/statistics/service", Some(Class::Registry)),
            (Method::POST, "/devices/query", Some(Class::Queries)),
            (Method::GET, "/devices/d/messages/deviceBound", Some(Class::CloudReceives)),
            (Method::DELETE, "/devices/d/messages/deviceBound/1", None),
            (Method::DELETE, "/devices/d/commands", None),
            (Method::POST, "/devices/d/messages/events", Some(Class::Telemetry)),
            (Method::GET, "/twins/d", Some(Class::TwinReads)),
            (Method::GET, "/twins/d/modules/m", Some(Class::TwinReads)),
            (Method::PATCH, "/twins/d", Some(Class::TwinUpdates)),
            (Method::PUT, "/twins/methods", Some(Class::TwinUpdates)),
            (Method::POST, "/twins/d/methods", Some(Class::Methods)),
            (Method::POST, "/twins/d/modules/m/methods", Some(Class::Methods)),
            (Method::PUT, "/jobs/v2/j", Some(Class::Jobs)),
            (Method::GET, "/jobs/v2/query", Some(Class::Jobs)),
            (Method::PUT, "/configurations/c", Some(Class::Configurations)),
            (Method::GET, "/messages/serviceBound/feedback", None),
        ] {
            assert_eq!(class(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn who_may_ask() {
        use Rights as R;
        for (method, path, expected) in [
            (Method::GET, "/devices/d", Some(R::REGISTRY_READ)),
            (Method::GET, "/statistics/devices", Some(R::REGISTRY_READ)),
            (Method::GET, "/statistics/service", Some(R::SERVICE_CONNECT)),
            (Method::PUT, "/devices/d", Some(R::REGISTRY_WRITE)),
            (Method::POST, "/devices", Some(R::REGISTRY_WRITE)),
            (Method::POST, "/devices/query", Some(R::SERVICE_CONNECT)),
            (Method::GET, "/devices/d/messages/deviceBound", None),
            (Method::PATCH, "/twins/d", Some(R::SERVICE_CONNECT)),
            (Method::POST, "/twins/d/methods", Some(R::SERVICE_CONNECT)),
            (Method::PUT, "/jobs/v2/j", Some(R::SERVICE_CONNECT)),
            (Method::GET, "/configurations/c", Some(R::REGISTRY_READ)),
            (Method::POST, "/configurations/testQueries", Some(R::REGISTRY_READ)),
            (Method::DELETE, "/configurations/c", Some(R::REGISTRY_WRITE)),
        ] {
            let class = class(&method, path).expect("a class");
            assert_eq!(rights(class, &method, path), expected, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn a_refusal_has_the_envelope_of_its_route() {
        for (class, expected) in
            [(Class::Methods, "errorCode\\\":429001"), (Class::Jobs, "ErrorCode:ThrottlingException;")]
        {
            for (milliseconds, seconds) in [(1, "1"), (1000, "1"), (1001, "2")] {
                let retry_after = Duration::from_millis(milliseconds);
                let response = refusal(class, Admission::Throttled { class, retry_after });
                assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
                assert_eq!(response.headers()[header::RETRY_AFTER], seconds);
                let body = read_body(response.into_body()).await.expect("a body");
                let body = String::from_utf8_lossy(&body);
                assert!(body.contains(expected), "{body}");
            }
        }
        let spent = refusal(Class::Jobs, Admission::QuotaSpent { used: 1, limit: 1 });
        assert!(spent.status() == StatusCode::FORBIDDEN && !spent.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn what_a_request_costs() {
        let cost = |class, sent, status: u16, received: usize| {
            let answer = Response::builder().status(status).body(Body::from("x".repeat(received))).expect("a response");
            costs(class, sent, br#"{"query":"SELECT * FROM devices"}"#, &answer)
        };
        assert_eq!(cost(Class::Methods, 5000, 200, 20), [5000, 20]);
        assert_eq!(cost(Class::Methods, 5000, 404, 300), [5000, 0]);
        assert_eq!(cost(Class::Methods, 5000, 504, 300), [0; 0]);
        assert_eq!(cost(Class::TwinReads, 0, 200, 9000), [9000]);
        assert_eq!(cost(Class::TwinUpdates, 12, 200, 9000), [12]);
        assert_eq!(cost(Class::TwinUpdates, 12, 412, 9000), [0; 0]);
        assert_eq!(cost(Class::Queries, 30, 200, 100), [100]);
        assert_eq!(cost(Class::Registry, 30, 200, 100), [0; 0]);
        assert!(is_about_jobs(br#"{"query":"SELECT * FROM devices.jobs"}"#) && !is_about_jobs(b"{"));
        let call = |payload: &str| payload_size(format!(r#"{{"methodName":"m","payload":{payload}}}"#).as_bytes());
        assert_eq!((call("null"), call("\"1234\""), payload_size(b"{}")), (0, 6, 0));
        assert_eq!([0, 1, 4096, 4097].map(metered), [4096, 4096, 4096, 8192]);
    }
}
