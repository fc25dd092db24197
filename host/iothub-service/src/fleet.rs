//! A hub behind its service API, as the job engine sees it: twin queries, direct methods and twin updates.
//!
//! Jobs send more than any other caller, so this keeps to what the hub takes ([`pace`]) and outlasts a while of
//! throttling or absence ([`patience`]). What may not be done twice is sent again only if it certainly was not done.

mod pace;
mod patience;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::job::TwinUpdate;
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::plugin_report::PinState;
use iothub_protocol::query::{Condition, MAX_QUERY, Source};
use iothub_protocol::quota::tier::{Class, METHOD_STEP, Sku};
use job_engine::{Fleet, LabelReader, Quota, Selected, Selection, Survey, Surveyed};
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info, warn};

use crate::client::{Page, ServiceClient, decode, read_page};
use crate::error::{Failure, FailureKind, Problem, ServiceError};
use crate::request::{PageRequest, ServiceRequest};
use pace::{Pace, Turn};
use patience::Patience;

/// Most rows of a page, by the hub's own limit.
const PAGE: u32 = 1000;
/// On top of a method's time-outs and of what every call has: a hub that is near its limit lets calls wait in a queue
/// before it begins to carry them out.
const QUEUE_MARGIN: Duration = Duration::from_secs(20);

/// Jobs act on the hub's devices and modules through this. Nobody tells it that a device has connected.
#[derive(Debug)]
pub struct RestFleet {
    service: ServiceClient,
    sku: Option<Sku>,
    queries: Lane,
    methods: Lane,
    twin_updates: Lane,
    /// Calls that are out at once need a connection each.
    connections: Semaphore,
}

/// All calls that one throttle of the hub is over.
#[derive(Debug)]
struct Lane {
    name: &'static str,
    pace: Mutex<Pace>,
    /// Held by the one whose turn is next; the others stand in line behind it.
    line: tokio::sync::Mutex<()>,
    /// The last call that ended has not reached the hub, or not its answer us.
    is_away: AtomicBool,
}

impl RestFleet {
    /// With a `sku`, calls keep to what a hub of that size takes; in any case, to what it says. They are over at most so
    /// many connections.
    pub fn new(service: ServiceClient, sku: Option<Sku>, connections: usize) -> RestFleet {
        let lane = |class: Class| Lane::new(class.name(), Pace::new(sku.map(|sku| sku.rate(class))));
        RestFleet {
            service,
            sku,
            queries: lane(Class::Queries),
            methods: lane(Class::Methods),
            twin_updates: lane(Class::TwinUpdates),
            connections: Semaphore::new(connections.max(1)),
        }
    }

    async fn send(&self, lane: &Lane, amount: u64, request: &ServiceRequest) -> Result<(HeaderMap, Vec<u8>), HubError> {
        let sent = lane.call(amount, request.repeatable, || async {
            // It is never closed.
            let _connection = self.connections.acquire().await;
            self.service.attempt(request).await
        });
        sent.await.map_err(|error| hub_error(&error))
    }

    /// All rows of a query, page by page.
    async fn rows(
        &self,
        query: &str,
        mut each: impl FnMut(&Value) -> Result<(), HubError> + Send,
    ) -> Result<(), HubError> {
        let mut next = Some(PageRequest { max_items: Some(PAGE), continuation: None });
        while let Some(wanted) = next {
            let (items, rest) = self.page(query, wanted).await?;
            items.iter().try_for_each(&mut each)?;
            next = rest;
        }
        Ok(())
    }

    /// A page of a query's rows, and how to ask for the next one.
    async fn page(&self, query: &str, wanted: PageRequest) -> Result<(Vec<Value>, Option<PageRequest>), HubError> {
        let request = ServiceRequest::query(query, &wanted);
        let (headers, body) = self.send(&self.queries, 1, &request).await?;
        let Page { items, continuation, .. } = read_page(&request, &headers, &body).map_err(|e| failed(&e))?;
        let next = continuation.map(|continuation| PageRequest { continuation: Some(continuation), ..wanted });
        Ok((items, next))
    }

    /// The rows of these devices and modules, as far as they exist.
    async fn named(
        &self,
        asked: &Naming,
        addresses: &[Address],
        mut each: impl FnMut(Address, &Value) + Send,
    ) -> Result<(), HubError> {
        let wanted: HashSet<&Address> = addresses.iter().collect();
        for query in asked.queries(addresses) {
            self.rows(&query, |row| {
                let address = address(row)?;
                // Its device may have more modules than the one.
                if wanted.contains(&address) {
                    each(address, row);
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn twins(&self, addresses: &[Address], mut each: impl FnMut(Address, &Value) + Send) -> Result<(), HubError> {
        self.named(&Naming::twins(Source::Devices), addresses, &mut each).await?;
        self.named(&Naming::twins(Source::Modules), addresses, each).await
    }
}

impl Fleet for RestFleet {
    async fn select(&self, selection: &Selection) -> Result<Vec<Selected>, HubError> {
        let mut reader = LabelReader::new(selection);
        let mut selected = Vec::new();
        let Selection { condition, among, labels } = selection;
        let Some(among) = among else {
            self.rows(&selecting(condition, !labels.is_empty()), |row| {
                selected.push(Selected { address: address(row)?, labels: reader.read(row) });
                Ok(())
            })
            .await?;
            return Ok(selected);
        };
        let asked = Naming::selecting(condition, !labels.is_empty());
        let each = |address, row: &Value| {
            if asked.has_condition || condition.matches(row) {
                selected.push(Selected { address, labels: reader.read(row) });
            }
        };
        self.named(&asked, among, each).await?;
        Ok(selected)
    }

    fn quota(&self) -> Option<Quota> {
        self.sku.map(Quota::Calls)
    }

    async fn survey(&self, asked: &Survey, pages: &mpsc::Sender<Vec<Surveyed>>) -> Result<(), HubError> {
        self.survey_rows(asked, pages).await
    }

    async fn call_method(&self, device: &Address, method: &DirectMethod) -> Result<MethodResponse, HubError> {
        let mut request = ServiceRequest::invoke_method(device, method);
        request.timeout += QUEUE_MARGIN;
        let bytes = method.payload.to_string().len() as u64;
        let steps = bytes.div_ceil(METHOD_STEP).max(1);
        let (_, body) = self.send(&self.methods, steps * METHOD_STEP, &request).await?;
        decode(&request, &body).map_err(|e| failed(&e))
    }

    async fn patch_twin(&self, device: &Address, update: &TwinUpdate) -> Result<(), HubError> {
        self.send(&self.twin_updates, 1, &ServiceRequest::patch_twin(device, update, None)).await.map(|_| ())
    }

    async fn pin_states(&self, plugin: &str, devices: &[Address]) -> Result<HashMap<Address, PinState>, HubError> {
        let mut states = HashMap::with_capacity(devices.len());
        let each = |address, twin: &Value| _ = states.insert(address, PinState::of_twin(twin, plugin));
        self.twins(devices, each).await?;
        Ok(states)
    }

    async fn matching(&self, condition: &Condition, devices: &[Address]) -> Result<HashSet<Address>, HubError> {
        let mut matching = HashSet::new();
        // Not the hub: condition and ids together may be longer than a query can be.
        let each = |address, twin: &Value| {
            if condition.matches(twin) {
                matching.insert(address);
            }
        };
        self.twins(devices, each).await?;
        Ok(matching)
    }
}

impl Lane {
    fn new(name: &'static str, pace: Pace) -> Lane {
        Lane { name, pace: Mutex::new(pace), line: tokio::sync::Mutex::default(), is_away: AtomicBool::new(false) }
    }

    /// Make a call until it succeeds, has the hub's last word, or patience ends.
    async fn call<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        amount: u64,
        repeatable: bool,
        attempt: impl Fn() -> F,
    ) -> Result<T, Failure> {
        let mut patience = Patience::new(repeatable);
        loop {
            self.turn(amount).await;
            let failure = match attempt().await {
                Ok(answer) => {
                    self.pace(|pace| pace.went_well(Instant::now()));
                    self.tell(None);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let now = Instant::now();
            self.tell(Some(&failure));
            match failure.kind {
                FailureKind::Throttled => self.pace(|pace| pace.throttled(now, failure.retry_after)),
                // The hub is there, and does what it is asked.
                FailureKind::Refused => self.pace(|pace| pace.went_well(now)),
                _ => {}
            }
            let Some(wait) = patience.after(now, &failure, rand::random()) else { return Err(failure) };
            debug!(calls = self.name, error = %failure.error, ?wait, "sent again after a wait");
            tokio::time::sleep(wait).await;
        }
    }

    /// Log that the hub has gone or come back: once, however many calls find out.
    fn tell(&self, failure: Option<&Failure>) {
        let away = failure.filter(|failure| matches!(failure.kind, FailureKind::NotSent | FailureKind::Lost));
        let was_away = self.is_away.swap(away.is_some(), Ordering::Relaxed);
        match away {
            Some(failure) if !was_away => warn!(calls = self.name, error = %failure.error, "the hub cannot be asked"),
            None if was_away => info!(calls = self.name, "the hub answers again"),
            _ => {}
        }
    }

    /// Stand in line until a call may go.
    async fn turn(&self, amount: u64) {
        let _first = self.line.lock().await;
        while let Turn::At(at) = self.pace(|pace| pace.turn(Instant::now(), amount)) {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    fn pace<T>(&self, take: impl FnOnce(&mut Pace) -> T) -> T {
        // Nothing under the lock panics half-way.
        take(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The query for the ids, and perhaps the tags, of all that meet a condition. Not whole twins: there may be a million.
fn selecting(condition: &Condition, with_tags: bool) -> String {
    of_all(condition, &items(condition.source(), with_tags))
}

/// The query for these parts of all that meet a condition.
fn of_all(condition: &Condition, items: &str) -> String {
    match condition.source() {
        Source::Devices if condition.is_all() => format!("SELECT {items} FROM devices"),
        Source::Devices | Source::Jobs => format!("SELECT {items} FROM devices WHERE {condition}"),
        Source::Modules => format!("SELECT {items} {condition}"),
    }
}

fn items(source: Source, with_tags: bool) -> String {
    let module = if source == Source::Modules { ", moduleId" } else { "" };
    let tags = if with_tags { ", tags" } else { "" };
    format!("deviceId{module}{tags}")
}

/// Queries that name the devices that they are about.
struct Naming {
    is_of_modules: bool,
    /// What stands before their ids, and what behind.
    begin: String,
    end: String,
    /// The hub looks for the condition, too; else it is left to us, with whole twins.
    has_condition: bool,
}

impl Naming {
    /// For whole twins.
    fn twins(source: Source) -> Naming {
        Naming::new(source, "*", String::new())
    }

    /// As [`selecting`].
    fn selecting(condition: &Condition, with_tags: bool) -> Naming {
        Naming::among(condition, &items(condition.source(), with_tags))
    }

    /// As [`of_all`].
    fn among(condition: &Condition, items: &str) -> Naming {
        let source = condition.source();
        let text = match (condition.is_all(), source) {
            (true, _) => String::new(),
            (false, Source::Devices | Source::Jobs) => format!(" AND ({condition})"),
            // Its text begins with its source.
            (false, Source::Modules) => {
                let text = condition.to_string();
                text.split_once(" WHERE ").map(|(_, text)| format!(" AND ({text})")).unwrap_or_default()
            }
        };
        // There must be room for ids.
        match text.len() <= MAX_QUERY / 2 {
            true => Naming::new(source, items, text),
            false => Naming { has_condition: false, ..Naming::twins(source) },
        }
    }

    fn new(source: Source, items: &str, end: String) -> Naming {
        let is_of_modules = source == Source::Modules;
        let name = if is_of_modules { "devices.modules" } else { "devices" };
        let begin = format!("SELECT {items} FROM {name} WHERE deviceId IN [");
        Naming { is_of_modules, begin, end: format!("]{end}"), has_condition: true }
    }

    /// As few as may be. Those of modules are about all modules of a device.
    fn queries(&self, addresses: &[Address]) -> Vec<String> {
        let of_kind = addresses.iter().filter(|address| address.is_module() == self.is_of_modules);
        let mut devices: Vec<&str> = of_kind.map(|address| address.device().as_str()).collect();
        devices.sort_unstable();
        devices.dedup();
        let mut queries = Vec::new();
        let mut ids = String::new();
        for device in devices {
            // An id may hold the one character that ends a text.
            let quoted = format!("'{}'", device.replace('\'', "\\'"));
            if self.begin.len() + ids.len() + 1 + quoted.len() + self.end.len() > MAX_QUERY && !ids.is_empty() {
                queries.push(format!("{}{ids}{}", self.begin, self.end));
                ids.clear();
            }
            if !ids.is_empty() {
                ids.push(',');
            }
            ids.push_str(&quoted);
        }
        if !ids.is_empty() {
            queries.push(format!("{}{ids}{}", self.begin, self.end));
        }
        queries
    }
}

/// Whose row it is.
fn address(row: &Value) -> Result<Address, HubError> {
    let text = |name: &str| row.get(name).and_then(Value::as_str);
    let device = text("deviceId").unwrap_or_default();
    let address = match text("moduleId") {
        None => Address::parse(device),
        Some(module) => Address::parse(&format!("{device}/{module}")),
    };
    address.map_err(|error| {
        HubError::new(ErrorCode::ServerError, format!("the hub answered a query with a row of nobody: {error}"))
    })
}

/// A call that brought nothing, in the words of the hub's own errors.
fn hub_error(failure: &Failure) -> HubError {
    let lost = |code, text: String| HubError::new(code, text);
    match (&failure.error, failure.kind) {
        (ServiceError::Hub(error), _) => error.clone(),
        (ServiceError::Transport { problem: Problem::TimedOut, .. }, FailureKind::Lost) => {
            lost(ErrorCode::GatewayTimeout, format!("{}, and the device has perhaps been reached", failure.error))
        }
        (error, FailureKind::Lost) => lost(
            ErrorCode::ServiceUnavailable,
            format!("the hub's answer was lost, and the device has perhaps been reached: {error}"),
        ),
        (error, _) => lost(ErrorCode::ServiceUnavailable, format!("the hub could not be reached: {error}")),
    }
}

/// An answer that is none.
fn failed(error: &ServiceError) -> HubError {
    HubError::new(ErrorCode::ServerError, error.to_string())
}
