//! The calls of the service API, written down but not sent.

use std::time::Duration;

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::{ConfigurationId, DeviceId, JobId, TemplateName};
use iothub_protocol::identity::IdentityRequest;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::job::targets::{ListPart, ListSeal};
use iothub_protocol::job::{JobRequest, JobStatus, MAX_MAX_EXECUTION, TwinUpdate};
use iothub_protocol::method::DirectMethod;
use iothub_protocol::time;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde_json::{Map, Value, json};

/// What every current SDK sends.
const API_VERSION: &str = "2021-04-12";
/// For a call that the hub answers by itself.
const TIMEOUT: Duration = Duration::from_secs(30);
/// For a look at a million devices, and at what other jobs have of them.
const PREVIEW_TIMEOUT: Duration = Duration::from_secs(300);
/// On top of the hub's own time-outs for a direct method, so that the hub's answer, which says more, comes first.
const METHOD_MARGIN: Duration = Duration::from_secs(10);
const UNRESERVED_KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceRequest {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<Value>,
    /// For the whole call.
    pub timeout: Duration,
    /// Sending it twice is the same as sending it once.
    pub repeatable: bool,
}

/// Which page of a long answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// At most this many items; the hub's default if `None`, and its limit of 1000 in any case.
    pub max_items: Option<u32>,
    /// From the page before; `None` for the first.
    pub continuation: Option<String>,
}

/// Which jobs to list; the default is all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobFilter<'a> {
    /// A job's `type`, such as `scheduleDeviceMethod`.
    pub job_type: Option<&'a str>,
    pub status: Option<JobStatus>,
}

impl ServiceRequest {
    /// Of a device or a module.
    pub fn create_identity(address: &Address, identity: &IdentityRequest) -> ServiceRequest {
        let mut body = json!({"deviceId": address.device(), "authentication": identity.authentication.to_json()});
        if let Some(module) = address.module() {
            body["moduleId"] = json!(module);
            body["managedBy"] = json!(identity.managed_by);
        } else {
            body["status"] = json!(if identity.disabled { "disabled" } else { "enabled" });
            if let Some(reason) = &identity.status_reason {
                body["statusReason"] = json!(reason);
            }
        }
        ServiceRequest::of(Method::PUT, "devices", address, &[]).with_body(body)
    }

    pub fn get_identity(address: &Address) -> ServiceRequest {
        ServiceRequest::of(Method::GET, "devices", address, &[])
    }

    pub fn delete_identity(address: &Address, etag: Option<&str>) -> ServiceRequest {
        ServiceRequest::of(Method::DELETE, "devices", address, &[]).with_if_match(etag)
    }

    pub fn list_modules(device: &DeviceId) -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["devices", device.as_str(), "modules"])
    }

    pub fn purge_messages(device: &DeviceId) -> ServiceRequest {
        ServiceRequest::new(Method::DELETE, &["devices", device.as_str(), "commands"])
    }

    pub fn get_twin(address: &Address) -> ServiceRequest {
        ServiceRequest::of(Method::GET, "twins", address, &[])
    }

    pub fn patch_twin(address: &Address, update: &TwinUpdate, etag: Option<&str>) -> ServiceRequest {
        let mut request =
            ServiceRequest::of(Method::PATCH, "twins", address, &[]).with_body(update.to_json()).with_if_match(etag);
        // With an etag, the second of two would meet the first one's result and fail.
        request.repeatable = etag.is_none();
        request
    }

    pub fn invoke_method(address: &Address, method: &DirectMethod) -> ServiceRequest {
        let mut request = ServiceRequest::of(Method::POST, "twins", address, &["methods"]).with_body(json!(method));
        let hub = u64::from(method.response_timeout()) + u64::from(method.connect_timeout());
        request.timeout = Duration::from_secs(hub) + METHOD_MARGIN;
        request
    }

    pub fn query(query: &str, page: &PageRequest) -> ServiceRequest {
        let mut request =
            ServiceRequest::new(Method::POST, &["devices", "query"]).with_body(json!({"query": query})).with_page(page);
        request.repeatable = true;
        request
    }

    /// Each device's row of a job.
    pub fn device_jobs(job: &JobId, page: &PageRequest) -> ServiceRequest {
        // An id may hold the one character that ends a string in a query.
        let id = job.as_str().replace('\'', "\\'");
        ServiceRequest::query(&format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{id}'"), page)
    }

    /// A device's or module's row of a job.
    pub fn device_job(job: &JobId, address: &Address) -> ServiceRequest {
        let quoted = |text: &str| text.replace('\'', "\\'");
        let (job, device) = (quoted(job.as_str()), quoted(address.device().as_str()));
        let mut query = format!("SELECT * FROM devices.jobs WHERE jobId = '{job}' AND deviceId = '{device}'");
        if let Some(module) = address.module() {
            query.push_str(&format!(" AND moduleId = '{}'", quoted(module.as_str())));
        }
        ServiceRequest::query(&query, &PageRequest::default())
    }

    pub fn create_job(job: &JobRequest) -> ServiceRequest {
        ServiceRequest::new(Method::PUT, &["jobs", "v2", job.job_id.as_str()]).with_body(job.to_json())
    }

    pub fn get_job(job: &JobId) -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["jobs", "v2", job.as_str()])
    }

    pub fn cancel_job(job: &JobId) -> ServiceRequest {
        ServiceRequest::new(Method::POST, &["jobs", "v2", job.as_str(), "cancel"])
    }

    pub fn pause_job(job: &JobId, reason: &str) -> ServiceRequest {
        let body = json!({"reason": reason});
        ServiceRequest::new(Method::POST, &["jobs", "v2", job.as_str(), "pause"]).with_body(body)
    }

    pub fn resume_job(job: &JobId) -> ServiceRequest {
        ServiceRequest::new(Method::POST, &["jobs", "v2", job.as_str(), "resume"])
    }

    pub fn approve_job(job: &JobId, stage: Option<u32>) -> ServiceRequest {
        let body = stage.map_or_else(|| json!({}), |stage| json!({"stage": stage}));
        ServiceRequest::new(Method::POST, &["jobs", "v2", job.as_str(), "approve"]).with_body(body)
    }

    pub fn clone_job(
        source: &JobId,
        job: &JobId,
        start_time: Option<DateTime<Utc>>,
        failed: Option<&[FailureClass]>,
    ) -> ServiceRequest {
        let mut body = json!({"jobId": job});
        if let Some(start) = start_time {
            body["startTime"] = json!(time::format(start));
        }
        if let Some(classes) = failed {
            body["devices"] = json!("failed");
            body["failures"] = json!(classes);
        }
        ServiceRequest::new(Method::POST, &["jobs", "v2", source.as_str(), "clone"]).with_body(body)
    }

    pub fn job_report(job: &JobId) -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["jobs", "v2", job.as_str(), "report"])
    }

    /// A stream that is open as long as the job goes on. `after` is the id of the last event that was seen.
    pub fn job_events(job: &JobId, after: Option<&str>) -> ServiceRequest {
        let mut request = ServiceRequest::new(Method::GET, &["jobs", "v2", job.as_str(), "events"]);
        request.timeout = Duration::from_secs(u64::from(MAX_MAX_EXECUTION));
        request.headers.push(("accept", "text/event-stream".to_owned()));
        request.headers.extend(after.map(|id| ("last-event-id", id.to_owned())));
        request
    }

    /// What a job would come to; ours. `body` is that of the job, with `tally` if it goes on with another.
    pub fn preview_job(body: Value) -> ServiceRequest {
        let mut request = ServiceRequest::new(Method::POST, &["jobs", "v2", "preview"]).with_body(body);
        request.timeout = PREVIEW_TIMEOUT;
        request.repeatable = true;
        request
    }

    pub fn job_attempts(job: &JobId, page: &PageRequest) -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["jobs", "v2", job.as_str(), "attempts"]).with_page(page)
    }

    pub fn device_attempts(job: &JobId, address: &Address) -> ServiceRequest {
        let mut path = vec!["jobs", "v2", job.as_str(), "devices", address.device().as_str()];
        path.extend(address.module().into_iter().flat_map(|module| ["modules", module.as_str()]));
        path.push("attempts");
        ServiceRequest::new(Method::GET, &path)
    }

    /// Of one job, or of all.
    pub fn job_audit(job: Option<&JobId>, page: &PageRequest) -> ServiceRequest {
        let of = job.map_or("query", JobId::as_str);
        ServiceRequest::new(Method::GET, &["jobs", "v2", of, "audit"]).with_page(page)
    }

    pub fn check_audit() -> ServiceRequest {
        let mut request = ServiceRequest::job_audit(None, &PageRequest::default());
        request.target.push_str("&verify=true");
        request
    }

    /// Some of a job's list; ours.
    pub fn extend_list(job: &JobId, part: &ListPart) -> ServiceRequest {
        let mut request =
            ServiceRequest::new(Method::POST, &["jobs", "v2", job.as_str(), "targets"]).with_body(part.to_json());
        request.repeatable = true;
        request
    }

    /// A job's list is whole; ours.
    pub fn complete_list(job: &JobId, seal: &ListSeal) -> ServiceRequest {
        let path = ["jobs", "v2", job.as_str(), "targets", "complete"];
        let mut request = ServiceRequest::new(Method::POST, &path).with_body(seal.to_json());
        request.repeatable = true;
        request
    }

    pub fn put_template(name: &TemplateName, body: Value) -> ServiceRequest {
        ServiceRequest::new(Method::PUT, &["jobs", "templates", name.as_str()]).with_body(body)
    }

    pub fn template(name: &TemplateName) -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["jobs", "templates", name.as_str()])
    }

    pub fn templates() -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["jobs", "templates"])
    }

    pub fn delete_template(name: &TemplateName) -> ServiceRequest {
        ServiceRequest::new(Method::DELETE, &["jobs", "templates", name.as_str()])
    }

    pub fn run_template(name: &TemplateName, job: &JobId, parameters: &Map<String, Value>) -> ServiceRequest {
        let body = json!({"jobId": job, "parameters": parameters});
        ServiceRequest::new(Method::POST, &["jobs", "templates", name.as_str(), "run"]).with_body(body)
    }

    pub fn query_jobs(filter: JobFilter<'_>, page: &PageRequest) -> ServiceRequest {
        let mut request = ServiceRequest::new(Method::GET, &["jobs", "v2", "query"]).with_page(page);
        let filters = [("jobType", filter.job_type), ("jobStatus", filter.status.map(JobStatus::name))];
        for (name, value) in filters.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            request.target.push_str(&format!("&{name}={}", utf8_percent_encode(value, UNRESERVED_KEPT)));
        }
        request
    }

    pub fn create_configuration(id: &ConfigurationId, configuration: Value) -> ServiceRequest {
        ServiceRequest::new(Method::PUT, &["configurations", id.as_str()]).with_body(configuration)
    }

    pub fn get_configuration(id: &ConfigurationId) -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["configurations", id.as_str()])
    }

    pub fn list_configurations() -> ServiceRequest {
        ServiceRequest::new(Method::GET, &["configurations"])
    }

    pub fn delete_configuration(id: &ConfigurationId, etag: Option<&str>) -> ServiceRequest {
        ServiceRequest::new(Method::DELETE, &["configurations", id.as_str()]).with_if_match(etag)
    }

    fn new(method: Method, path: &[&str]) -> ServiceRequest {
        let mut target = String::new();
        for segment in path {
            target.push('/');
            target.extend(utf8_percent_encode(segment, UNRESERVED_KEPT));
        }
        target.push_str("?api-version=");
        target.push_str(API_VERSION);
        let repeatable = method == Method::GET;
        ServiceRequest { method, target, headers: Vec::new(), body: None, timeout: TIMEOUT, repeatable }
    }

    fn with_body(mut self, body: Value) -> ServiceRequest {
        self.body = Some(body);
        self
    }

    /// Quoted, as RFC 7232 has it; without an etag, whatever there is.
    fn with_if_match(mut self, etag: Option<&str>) -> ServiceRequest {
        self.headers.push(("if-match", format!("\"{}\"", etag.unwrap_or("*").trim_matches('"'))));
        self
    }

    /// Of what stands in a collection under an address.
    fn of(method: Method, collection: &str, address: &Address, rest: &[&str]) -> ServiceRequest {
        let mut path = vec![collection, address.device().as_str()];
        path.extend(address.module().into_iter().flat_map(|module| ["modules", module.as_str()]));
        path.extend(rest);
        ServiceRequest::new(method, &path)
    }

    fn with_page(mut self, page: &PageRequest) -> ServiceRequest {
        let max_items = page.max_items.map(|n| n.to_string());
        let headers = [("x-ms-max-item-count", max_items), ("x-ms-continuation", page.continuation.clone())];
        self.headers.extend(headers.into_iter().filter_map(|(name, value)| Some((name, value?))));
        self
    }
}

#[cfg(test)]
mod tests {
    use iothub_protocol::job::JobAction;

    use super::*;

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).expect("an id")
    }

    fn address(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    fn job(id: &str) -> JobId {
        JobId::parse(id).expect("an id")
    }

    fn method() -> DirectMethod {
        serde_json::from_value(json!({"methodName": "lockDoor", "payload": {"a": 1},
            "responseTimeoutInSeconds": 20, "connectTimeoutInSeconds": 5}))
        .expect("a method")
    }

    fn check(request: &ServiceRequest, line: &str, headers: &[(&'static str, &str)], body: Value) {
        assert_eq!(format!("{} {}", request.method, request.target), line);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        assert_eq!(request.headers, headers, "{line}");
        assert_eq!(request.body.clone().unwrap_or(Value::Null), body, "{line}");
    }

    #[test]
    fn registry_and_twin_calls() {
        let d1 = address("d1");
        check(
            &ServiceRequest::create_identity(&d1, &IdentityRequest::default()),
            "PUT /devices/d1?api-version=2021-04-12",
            &[],
            json!({"deviceId": "d1", "status": "enabled",
                "authentication": {"type": "sas", "symmetricKey": {"primaryKey": "", "secondaryKey": ""}}}),
        );
        let odd = address("a?b#c%d:e@f");
        let line = "GET /devices/a%3Fb%23c%25d%3Ae%40f?api-version=2021-04-12";
        check(&ServiceRequest::get_identity(&odd), line, &[], Value::Null);
        let line = "DELETE /devices/d1?api-version=2021-04-12";
        check(&ServiceRequest::delete_identity(&d1, None), line, &[("if-match", "\"*\"")], Value::Null);
        let purge = ServiceRequest::purge_messages(&device("d1"));
        check(&purge, "DELETE /devices/d1/commands?api-version=2021-04-12", &[], Value::Null);
        assert!(!purge.repeatable, "the second of two would say that there was nothing");
        check(&ServiceRequest::get_twin(&d1), "GET /twins/d1?api-version=2021-04-12", &[], Value::Null);

        let desired = json!({"floor": 3, "gone": null}).as_object().cloned();
        let update = TwinUpdate { tags: None, desired };
        let line = "PATCH /twins/d1?api-version=2021-04-12";
        let body = json!({"properties": {"desired": {"floor": 3, "gone": null}}});
        for etag in ["AAA=", "\"AAA=\""] {
            let request = ServiceRequest::patch_twin(&d1, &update, Some(etag));
            check(&request, line, &[("if-match", "\"AAA=\"")], body.clone());
            assert!(!request.repeatable);
        }
        assert!(ServiceRequest::patch_twin(&d1, &update, None).repeatable);
    }

    #[test]
    fn calls_to_a_module() {
        let module = address("d1/$m");
        let identity = IdentityRequest { managed_by: Some("ops".into()), ..IdentityRequest::default() };
        check(
            &ServiceRequest::create_identity(&module, &identity),
            "PUT /devices/d1/modules/%24m?api-version=2021-04-12",
            &[],
            json!({"deviceId": "d1", "moduleId": "$m", "managedBy": "ops",
                "authentication": {"type": "sas", "symmetricKey": {"primaryKey": "", "secondaryKey": ""}}}),
        );
        let line = "GET /devices/d1/modules?api-version=2021-04-12";
        check(&ServiceRequest::list_modules(&device("d1")), line, &[], Value::Null);
        let line = "GET /twins/d1/modules/%24m?api-version=2021-04-12";
        check(&ServiceRequest::get_twin(&module), line, &[], Value::Null);
        let line = "POST /twins/d1/modules/%24m/methods?api-version=2021-04-12";
        check(&ServiceRequest::invoke_method(&module, &method()), line, &[], json!(method()));
    }

    #[test]
    fn a_method_call_outlasts_the_hubs_own_time_outs() {
        let request = ServiceRequest::invoke_method(&address("d1"), &method());
        let body = json!({"methodName": "lockDoor", "payload": {"a": 1},
            "responseTimeoutInSeconds": 20, "connectTimeoutInSeconds": 5});
        check(&request, "POST /twins/d1/methods?api-version=2021-04-12", &[], body);
        assert_eq!((request.timeout, request.repeatable), (Duration::from_secs(35), false));
    }

    #[test]
    fn configuration_calls() {
        let id = ConfigurationId::parse("door:v1").expect("an id");
        let line = "PUT /configurations/door%3Av1?api-version=2021-04-12";
        let create = ServiceRequest::create_configuration(&id, json!({"priority": 1}));
        check(&create, line, &[], json!({"priority": 1}));
        assert!(!create.repeatable, "the second of two would find the first");
        let line = "GET /configurations/door%3Av1?api-version=2021-04-12";
        check(&ServiceRequest::get_configuration(&id), line, &[], Value::Null);
        let line = "GET /configurations?api-version=2021-04-12";
        check(&ServiceRequest::list_configurations(), line, &[], Value::Null);
        let line = "DELETE /configurations/door%3Av1?api-version=2021-04-12";
        check(&ServiceRequest::delete_configuration(&id, None), line, &[("if-match", "\"*\"")], Value::Null);
    }

    #[test]
    fn job_and_query_calls() {
        let page = PageRequest { max_items: Some(100), continuation: Some("abc".into()) };
        let headers = [("x-ms-max-item-count", "100"), ("x-ms-continuation", "abc")];
        let line = "POST /devices/query?api-version=2021-04-12";
        let query = ServiceRequest::query("SELECT * FROM devices", &page);
        check(&query, line, &headers, json!({"query": "SELECT * FROM devices"}));
        assert!(query.repeatable);
        let rows = ServiceRequest::device_jobs(&job("it's"), &PageRequest::default());
        let text = r"SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'it\'s'";
        check(&rows, line, &[], json!({"query": text}));

        let request = JobRequest {
            job_id: job("j1"),
            action: JobAction::Method(method()),
            query_condition: "*".into(),
            start_time: None,
            max_execution_time_in_seconds: 60,
            policy: None,
            targets: None,
            then: Vec::new(),
            recurrence: None,
        };
        let line = "PUT /jobs/v2/j1?api-version=2021-04-12";
        check(&ServiceRequest::create_job(&request), line, &[], request.to_json());
        let line = "GET /jobs/v2/j%2B1?api-version=2021-04-12";
        check(&ServiceRequest::get_job(&job("j+1")), line, &[], Value::Null);
        let part = ListPart { devices: vec![address("d1/m")], excluded: Vec::new() };
        let line = "POST /jobs/v2/j1/targets?api-version=2021-04-12";
        check(&ServiceRequest::extend_list(&job("j1"), &part), line, &[], json!({"devices": ["d1/m"], "exclude": []}));
        let seal = ListSeal { count: 1, sha256: "0".repeat(64) };
        let line = "POST /jobs/v2/j1/targets/complete?api-version=2021-04-12";
        let complete = ServiceRequest::complete_list(&job("j1"), &seal);
        check(&complete, line, &[], seal.to_json());
        assert!(complete.repeatable, "said again, it changes nothing");
        let line = "POST /jobs/v2/j1/cancel?api-version=2021-04-12";
        check(&ServiceRequest::cancel_job(&job("j1")), line, &[], Value::Null);
        let line = "POST /jobs/v2/j1/pause?api-version=2021-04-12";
        check(&ServiceRequest::pause_job(&job("j1"), "why"), line, &[], json!({"reason": "why"}));
        let line = "POST /jobs/v2/j1/resume?api-version=2021-04-12";
        check(&ServiceRequest::resume_job(&job("j1")), line, &[], Value::Null);
        let line = "POST /jobs/v2/j1/approve?api-version=2021-04-12";
        check(&ServiceRequest::approve_job(&job("j1"), Some(2)), line, &[], json!({"stage": 2}));
        let line = "POST /jobs/v2/j1/clone?api-version=2021-04-12";
        let again = ServiceRequest::clone_job(&job("j1"), &job("j2"), None, Some(&[FailureClass::Timeout]));
        check(&again, line, &[], json!({"jobId": "j2", "devices": "failed", "failures": ["timeout"]}));
        let line = "GET /jobs/v2/j1/report?api-version=2021-04-12";
        check(&ServiceRequest::job_report(&job("j1")), line, &[], Value::Null);
        let line = "GET /jobs/v2/j1/events?api-version=2021-04-12";
        let accept = [("accept", "text/event-stream"), ("last-event-id", "7")];
        check(&ServiceRequest::job_events(&job("j1"), Some("7")), line, &accept, Value::Null);
        let line = "GET /jobs/v2/j1/attempts?api-version=2021-04-12";
        check(&ServiceRequest::job_attempts(&job("j1"), &page), line, &headers, Value::Null);
        let line = "GET /jobs/v2/j1/devices/d1/attempts?api-version=2021-04-12";
        check(&ServiceRequest::device_attempts(&job("j1"), &address("d1")), line, &[], Value::Null);
        let line = "GET /jobs/v2/j1/devices/d1/modules/m%241/attempts?api-version=2021-04-12";
        check(&ServiceRequest::device_attempts(&job("j1"), &address("d1/m$1")), line, &[], Value::Null);
        let line = "GET /jobs/v2/j1/audit?api-version=2021-04-12";
        check(&ServiceRequest::job_audit(Some(&job("j1")), &page), line, &headers, Value::Null);
        let line = "GET /jobs/v2/query/audit?api-version=2021-04-12&verify=true";
        check(&ServiceRequest::check_audit(), line, &[], Value::Null);
        let lock = TemplateName::parse("lock-up").expect("a name");
        let line = "PUT /jobs/templates/lock-up?api-version=2021-04-12";
        check(&ServiceRequest::put_template(&lock, json!({"job": {}})), line, &[], json!({"job": {}}));
        let line = "GET /jobs/templates/lock-up?api-version=2021-04-12";
        check(&ServiceRequest::template(&lock), line, &[], Value::Null);
        check(&ServiceRequest::templates(), "GET /jobs/templates?api-version=2021-04-12", &[], Value::Null);
        let line = "DELETE /jobs/templates/lock-up?api-version=2021-04-12";
        check(&ServiceRequest::delete_template(&lock), line, &[], Value::Null);
        let line = "POST /jobs/templates/lock-up/run?api-version=2021-04-12";
        let run = ServiceRequest::run_template(&lock, &job("j1"), &Map::new());
        check(&run, line, &[], json!({"jobId": "j1", "parameters": {}}));
        let filter = JobFilter { job_type: Some("scheduleUpdateTwin"), status: Some(JobStatus::Running) };
        let line = "GET /jobs/v2/query?api-version=2021-04-12&jobType=scheduleUpdateTwin&jobStatus=running";
        check(&ServiceRequest::query_jobs(filter, &page), line, &headers, Value::Null);
    }
}
