//! One instance of one version: it takes one call at a time and dies of any failure.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use iothub_protocol::id::{DeviceId, MethodName};
use wasmtime::{Store, StoreContextMut, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::bindings::Bound;
use crate::context::{Effects, IncomingMessage, Snapshot, Timer};
use crate::folder;
use crate::guest::{Guest, Origin};
use crate::inspect::{LIFECYCLE, MESSAGES, METHODS, REACTIONS, TICKS};
use crate::settings::RuntimeSettings;
use crate::terms::PluginLimits;
use crate::version::{PluginVersion, VersionTag};

/// A guest in memory. Serves one device: what it keeps in its globals would otherwise travel between devices.
///
/// It is only a cache. After a [`CallFailure`], or a call whose future was dropped, it answers [`CallFailure::Ended`]
/// for ever and must be dropped.
pub struct Instance {
    store: Store<Guest>,
    bound: Bound,
    version: Arc<PluginVersion>,
    time_limit: Duration,
    memory_limit: usize,
    ready: bool,
}

/// What a guest answers to a direct method, as it gave it: whether the payload is JSON is for the caller to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestResponse {
    pub status: i32,
    pub payload: String,
}

/// What should become of a change, a message or a timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Dealt with.
    Done,
    /// Bring it again later, for this reason.
    Retry(String),
}

/// Why a guest did not answer. The instance is lost, and so is everything that the call did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallFailure {
    #[error("the plugin trapped: {message}")]
    Trap { message: String },
    #[error("the plugin ran longer than {} s", limit.as_secs_f64())]
    Timeout { limit: Duration },
    #[error("the plugin wanted {wanted} bytes of memory; the limit is {limit}")]
    Memory { wanted: usize, limit: usize },
    #[error("no instance of the plugin can be made: {reason}")]
    Instantiate { reason: String },
    #[error("the plugin does not export `{interface}`")]
    Missing { interface: &'static str },
    #[error("the instance has ended in an earlier call")]
    Ended,
}

impl Instance {
    /// `device` is `None` for the self-test, `now` in milliseconds since the beginning of 1970, UTC.
    pub(crate) async fn new(
        version: Arc<PluginVersion>,
        settings: &RuntimeSettings,
        device: Option<&DeviceId>,
        now: u64,
    ) -> Result<Instance, CallFailure> {
        let PluginLimits { call_time, memory } = version.terms.limits;
        let time_limit = call_time.map_or(settings.call_time_limit, |limit| limit.min(settings.call_time_limit));
        let memory_limit = memory.map_or(settings.memory_limit, |limit| limit.min(settings.memory_limit));
        let unmade = |reason| CallFailure::Instantiate { reason };
        let folder = match (&version.terms.grants.folder, device) {
            (Some(granted), Some(device)) => {
                Some(folder::make(granted, &version.name, device, time_limit).await.map_err(unmade)?)
            }
            _ => None,
        };
        let origin = Origin { device, now, folder };
        let guest = Guest::new(&version, &origin, memory_limit, settings.calls, time_limit)
            .map_err(|error| unmade(format!("{error:#}")))?;
        let mut store = store(version.pre.engine(), guest, settings.calls.argument);
        let making = in_time(time_limit, pin!(version.exports.instantiate(&version.pre, &mut store))).await;
        match making {
            Some(Ok(bound)) => Ok(Instance { store, bound, version, time_limit, memory_limit, ready: true }),
            Some(Err(error)) => Err(failure(&error, store.data(), time_limit, memory_limit)
                .unwrap_or_else(|| CallFailure::Instantiate { reason: format!("{error:#}") })),
            None => Err(CallFailure::Timeout { limit: time_limit }),
        }
    }

    #[cfg(test)]
    pub(crate) fn guest(&mut self) -> &mut Guest {
        self.store.data_mut()
    }

    pub fn version(&self) -> &Arc<PluginVersion> {
        &self.version
    }

    /// Call `iothub:plugin/methods.call`.
    ///
    /// # Errors
    /// After any, the instance must be dropped.
    pub async fn call_method(
        &mut self,
        snapshot: Snapshot,
        name: &MethodName,
        payload: impl Into<String>,
    ) -> Result<(GuestResponse, Effects), CallFailure> {
        self.begin(Some(snapshot))?;
        let (limit, name) = (self.time_limit, name.as_str());
        let outcome = in_time(limit, pin!(self.bound.call(&mut self.store, name, payload.into()))).await;
        self.end(outcome, METHODS)
    }

    /// Call `iothub:plugin/reactions.changed`. A change that comes again has no effects.
    ///
    /// # Errors
    /// After any, the instance must be dropped.
    pub async fn changed(
        &mut self,
        snapshot: Snapshot,
        version: u64,
        patch: impl Into<String>,
    ) -> Result<(Verdict, Effects), CallFailure> {
        self.begin(Some(snapshot))?;
        let limit = self.time_limit;
        let outcome = in_time(limit, pin!(self.bound.changed(&mut self.store, version, patch.into()))).await;
        self.end(outcome, REACTIONS).map(without_effects_of_retry)
    }

    /// Call `iothub:plugin/messages.received`. A message that comes again has no effects.
    ///
    /// # Errors
    /// After any, the instance must be dropped.
    pub async fn received(
        &mut self,
        snapshot: Snapshot,
        message: &IncomingMessage,
    ) -> Result<(Verdict, Effects), CallFailure> {
        self.begin(Some(snapshot))?;
        let outcome = in_time(self.time_limit, pin!(self.bound.received(&mut self.store, message))).await;
        self.end(outcome, MESSAGES).map(without_effects_of_retry)
    }

    /// Call `iothub:plugin/ticks.fired`. The timer is not to be among those of `snapshot`. One that comes again has no
    /// effects.
    ///
    /// # Errors
    /// After any, the instance must be dropped.
    pub async fn fired(
        &mut self,
        snapshot: Snapshot,
        name: &str,
        timer: &Timer,
    ) -> Result<(Verdict, Effects), CallFailure> {
        self.begin(Some(snapshot))?;
        let outcome = in_time(self.time_limit, pin!(self.bound.fired(&mut self.store, name, timer))).await;
        self.end(outcome, TICKS).map(without_effects_of_retry)
    }

    /// Call `iothub:plugin/lifecycle.activated`. The inner error is the guest's refusal, which has no effects.
    ///
    /// # Errors
    /// After any, the instance must be dropped.
    pub async fn activated(
        &mut self,
        snapshot: Snapshot,
        previous: Option<&VersionTag>,
    ) -> Result<(Result<(), String>, Effects), CallFailure> {
        self.begin(Some(snapshot))?;
        let outcome = in_time(self.time_limit, pin!(self.bound.activated(&mut self.store, previous))).await;
        match self.end(outcome, LIFECYCLE)? {
            (Ok(()), effects) => Ok((Ok(()), effects)),
            (refused, _) => Ok((refused, Effects::default())),
        }
    }

    /// Ask for the methods that the plugin answers; none if it does not export the interface.
    pub(crate) async fn names(&mut self) -> Result<Vec<String>, CallFailure> {
        self.begin(None)?;
        let outcome = in_time(self.time_limit, pin!(self.bound.names(&mut self.store))).await;
        self.asked(outcome, METHODS)
    }

    /// Ask for the paths that the plugin watches; none if it does not export the interface.
    pub(crate) async fn watched(&mut self) -> Result<Vec<String>, CallFailure> {
        self.begin(None)?;
        let outcome = in_time(self.time_limit, pin!(self.bound.watched(&mut self.store))).await;
        self.asked(outcome, REACTIONS)
    }

    /// Ask in which form the plugin keeps its state; 0 if it does not export the interface.
    pub(crate) async fn state_format(&mut self) -> Result<u32, CallFailure> {
        self.begin(None)?;
        let outcome = in_time(self.time_limit, pin!(self.bound.state_format(&mut self.store))).await;
        self.asked(outcome, LIFECYCLE)
    }

    fn asked<T: Default>(&mut self, outcome: Outcome<T>, interface: &'static str) -> Result<T, CallFailure> {
        match self.end(outcome, interface) {
            Ok((answer, _)) => Ok(answer),
            Err(CallFailure::Missing { .. }) => {
                self.ready = true;
                Ok(T::default())
            }
            Err(failure) => Err(failure),
        }
    }

    fn begin(&mut self, snapshot: Option<Snapshot>) -> Result<(), CallFailure> {
        // Stays so if the call fails, or if its future is dropped while the guest runs.
        if !std::mem::take(&mut self.ready) {
            return Err(CallFailure::Ended);
        }
        self.store.data_mut().begin(snapshot, self.time_limit);
        self.store.set_epoch_deadline(1);
        Ok(())
    }

    fn end<T>(&mut self, outcome: Outcome<T>, interface: &'static str) -> Result<(T, Effects), CallFailure> {
        let effects = self.store.data_mut().end();
        match outcome {
            Some(Ok(Some(answer))) => {
                self.ready = true;
                Ok((answer, effects))
            }
            Some(Ok(None)) => Err(CallFailure::Missing { interface }),
            Some(Err(error)) => Err(self.failure(&error)),
            None => Err(CallFailure::Timeout { limit: self.time_limit }),
        }
    }

    fn failure(&self, error: &wasmtime::Error) -> CallFailure {
        let guest = self.store.data();
        failure(error, guest, self.time_limit, self.memory_limit).unwrap_or_else(|| {
            if let Some(functions) = error.downcast_ref::<WasmBacktrace>().and_then(summary) {
                guest.output.backtrace(&functions);
            }
            CallFailure::Trap { message: message(error, guest) }
        })
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("version", &self.version).field("ready", &self.ready).finish_non_exhaustive()
    }
}

fn without_effects_of_retry((verdict, effects): (Verdict, Effects)) -> (Verdict, Effects) {
    match verdict {
        Verdict::Done => (verdict, effects),
        Verdict::Retry(_) => (verdict, Effects::default()),
    }
}

/// What a call comes to: `None` if it took too long; `Some(Ok(None))` if there was nothing to call.
type Outcome<T> = Option<wasmtime::Result<Option<T>>>;

/// The limit for a guest that waits (a WASI timer). One that computes meets it in [`look`].
///
/// A panic is a fault of the host, but a guest led to it: it costs the instance, and not the device that waits here.
async fn in_time<T>(
    limit: Duration,
    mut call: Pin<&mut impl Future<Output = wasmtime::Result<T>>>,
) -> Option<wasmtime::Result<T>> {
    let mut caught = poll_fn(|context| {
        let polled = panic::catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(wasmtime::Error::msg("the host panicked, see its log"))))
    });
    // Most calls return without waiting for anything, and need no timer.
    let at_once = poll_fn(|context| Poll::Ready(Pin::new(&mut caught).poll(context))).await;
    match at_once {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => tokio::time::timeout(limit, caught).await.ok(),
    }
}

fn store(engine: &wasmtime::Engine, guest: Guest, argument: usize) -> Store<Guest> {
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.limiter);
    store.set_hostcall_fuel(argument);
    store.epoch_deadline_callback(look);
    store.set_epoch_deadline(1);
    store
}

/// Called at each tick of the epoch while a guest computes: let others run, or end it. A time-out around the call
/// would not do, since the runtime may be too busy with such guests to look at its timers.
fn look(mut store: StoreContextMut<'_, Guest>) -> wasmtime::Result<UpdateDeadline> {
    if store.data_mut().deadline.has_passed(Instant::now()) {
        return Err(wasmtime::Error::new(OutOfTime));
    }
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
}

#[derive(Debug, thiserror::Error)]
#[error("out of time")]
struct OutOfTime;

/// A limit, if that is what `error` came from.
fn failure(error: &wasmtime::Error, guest: &Guest, time: Duration, memory: usize) -> Option<CallFailure> {
    if error.is::<OutOfTime>() {
        return Some(CallFailure::Timeout { limit: time });
    }
    // A refused growth is an answer to the guest, and few guests do anything but trap on it.
    guest.limiter.refused().map(|wanted| CallFailure::Memory { wanted, limit: memory })
}

fn message(error: &wasmtime::Error, guest: &Guest) -> String {
    let cause = match (error.downcast_ref::<I32Exit>(), error.downcast_ref::<Trap>()) {
        (Some(exit), _) => format!("it called exit with status {}", exit.0),
        (None, Some(trap)) => trap.to_string(),
        (None, None) => error.root_cause().to_string(),
    };
    let cause = cause.lines().next().unwrap_or_default().trim_start_matches("wasm trap: ").to_owned();
    match guest.output.last_words() {
        Some(words) => format!("{cause}; its last words: {words}"),
        None => cause,
    }
}

/// The functions that were running, innermost first, on one line; nothing if the component was stripped of their names.
fn summary(backtrace: &WasmBacktrace) -> Option<String> {
    if backtrace.frames().iter().all(|frame| frame.func_name().is_none()) {
        return None;
    }
    // Its text has the names as people write them; each line ends in ` - MODULE!FUNCTION`.
    let text = backtrace.to_string();
    let frames = text.lines().filter_map(|line| line.split_once(" - "));
    let functions = frames.map(|(_, frame)| frame.split_once('!').map_or(frame, |(_, function)| function));
    Some(functions.collect::<Vec<_>>().join(" < "))
}

#[cfg(test)]
mod drafts;
#[cfg(test)]
mod granted;
#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use iothub_protocol::id::DeviceId;
    use iothub_protocol::link::CloudMessage;

    use super::*;
    use crate::context::MessageSource;
    use crate::runtime::Runtime;
    use crate::terms::Terms;
    use crate::testing::{Component, name, snapshot, source};
    use crate::version::PluginSource;

    /// For calls that hang: long enough for a busy machine to load the component within it.
    pub(super) const SHORT: Duration = Duration::from_millis(500);
    /// For calls that end by themselves, however busy the machine is.
    const LONG: Duration = Duration::from_secs(60);

    pub(super) async fn instance(component: Component) -> Instance {
        instance_within(component, LONG).await
    }

    async fn instance_within(component: Component, limit: Duration) -> Instance {
        let settings = RuntimeSettings { call_time_limit: limit, ..RuntimeSettings::default() };
        instance_on(component, settings, Terms::default()).await
    }

    pub(super) async fn instance_on(component: Component, settings: RuntimeSettings, terms: Terms) -> Instance {
        let runtime = Runtime::new(settings).expect("a runtime");
        let loading = runtime.clone();
        let source = PluginSource { terms, ..source("echo", component.wasm()) };
        let version = tokio::task::spawn_blocking(move || loading.load(source)).await.expect("no panic");
        let version = version.expect("a good plugin");
        runtime.instantiate(&version, &snapshot().device_id, snapshot().now).await.expect("an instance")
    }

    pub(super) async fn fail(component: Component) -> CallFailure {
        fail_on(instance(component).await).await
    }

    /// As [`fail`], for a component that never ends.
    pub(super) async fn hang(component: Component) -> CallFailure {
        fail_on(instance_within(component, SHORT).await).await
    }

    async fn fail_on(mut instance: Instance) -> CallFailure {
        let failure = instance.call_method(snapshot(), &name("lockDoor"), "{}").await.expect_err("a failure");
        let again = instance.call_method(snapshot(), &name("lockDoor"), "{}").await;
        assert_eq!(again, Err(CallFailure::Ended));
        failure
    }

    #[tokio::test]
    async fn a_call_answers_and_its_effects_come_out() {
        let mut instance = instance(Component::echo("lockDoor")).await;
        let mut before = snapshot();
        before.state = Arc::new(BTreeMap::from([("\"key\"".to_owned(), vec![1])]));
        for _ in 0..2 {
            let (response, effects) =
                instance.call_method(before.clone(), &name("lockDoor"), "\"key\"").await.expect("an answer");
            assert_eq!(response, GuestResponse { status: 200, payload: "\"key\"".to_owned() });
            // The fixture deletes the key that the payload names.
            assert_eq!(effects.state, BTreeMap::from([("\"key\"".to_owned(), None)]));
        }
    }

    #[tokio::test]
    async fn a_change_gets_its_verdict() {
        let mut instance = instance(Component::echo("lockDoor").reacting("lock")).await;
        assert_eq!(instance.version().watched(), ["lock"]);
        let done = instance.changed(snapshot(), 1, "").await.expect("a verdict");
        assert_eq!(done, (Verdict::Done, Effects::default()));
        let retry = instance.changed(snapshot(), 1, "not now").await.expect("a verdict");
        assert_eq!(retry, (Verdict::Retry("not now".to_owned()), Effects::default()));
    }

    #[tokio::test]
    async fn a_message_is_dealt_with_or_comes_again() {
        let mut instance = instance(Component::echo("lockDoor").messaging()).await;
        assert!(instance.version().has_messages());
        let message = |source, body: &str| IncomingMessage {
            source,
            message: CloudMessage { body: body.into(), message_id: Some("m1".into()), ..CloudMessage::default() },
        };
        let done = instance.received(snapshot(), &message(MessageSource::Cloud, "")).await.expect("a verdict");
        assert_eq!(done, (Verdict::Done, Effects::default()));
        let peer = MessageSource::Peer(DeviceId::parse("door-0002").expect("an id"));
        for (source, reason) in [(MessageSource::Cloud, "not now"), (peer, "from door-0002")] {
            let message = message(source, "not now");
            let retry = instance.received(snapshot(), &message).await.expect("a verdict");
            assert_eq!(retry, (Verdict::Retry(reason.to_owned()), Effects::default()));
        }
    }

    #[tokio::test]
    async fn a_plugin_may_have_messages_and_nothing_else() {
        let only_messages =
            Component::echo("lockDoor").messaging().replace("\\08\\00\\00\\00\\01", "\\08\\00\\00\\00\\00");
        assert!(instance(only_messages).await.version().methods().is_empty());
    }

    #[tokio::test]
    async fn a_timer_is_dealt_with_or_comes_again() {
        let mut instance = instance(Component::echo("lockDoor").ticking()).await;
        assert!(instance.version().has_ticks());
        let timer = |due, payload: &[u8]| Timer { due, payload: payload.into() };
        let done = instance.fired(snapshot(), "step", &timer(1, b"")).await.expect("a verdict");
        let timers = BTreeMap::from([("step".to_owned(), Some(timer(7, b"")))]);
        assert_eq!(done, (Verdict::Done, Effects { timers, ..Effects::default() }));
        let retry = instance.fired(snapshot(), "step", &timer(1, b"not now")).await.expect("a verdict");
        assert_eq!(retry, (Verdict::Retry("not now".to_owned()), Effects::default()));
    }

    #[tokio::test]
    async fn a_version_is_activated_or_refuses() {
        let mut instance = instance(Component::echo("lockDoor").living()).await;
        assert!(instance.version().has_lifecycle());
        assert_eq!(instance.version().state_format(), 7);
        let new = instance.activated(snapshot(), None).await.expect("an answer");
        assert_eq!(new, (Ok(()), Effects::default()));
        let previous = VersionTag { label: "1.0.0".into(), hash: "abc".into(), state_format: 6 };
        let refused = instance.activated(snapshot(), Some(&previous)).await.expect("an answer");
        assert_eq!(refused, (Err("1.0.0".to_owned()), Effects::default()), "in words of its own");
        let readable = VersionTag { state_format: 7, ..previous };
        let taken_over = instance.activated(snapshot(), Some(&readable)).await.expect("an answer");
        assert_eq!(taken_over, (Ok(()), Effects::default()));
    }

    #[tokio::test]
    async fn a_trap_is_named_and_ends_the_instance() {
        let failure = fail(Component::method("lockDoor", "unreachable")).await;
        assert_eq!(failure.to_string(), "the plugin trapped: wasm `unreachable` instruction executed");
    }

    #[tokio::test]
    async fn an_endless_loop_ends_at_the_limit_even_on_a_single_thread() {
        let failure = hang(Component::method("lockDoor", "(loop $again (br $again)) unreachable")).await;
        assert_eq!(failure, CallFailure::Timeout { limit: SHORT });
    }

    #[tokio::test]
    async fn memory_over_the_limit_is_named() {
        let hoard = "(if (i32.eq (memory.grow (i32.const 2000)) (i32.const -1)) (then unreachable)) unreachable";
        let failure = fail(Component::method("lockDoor", hoard)).await;
        assert_eq!(failure, CallFailure::Memory { wanted: 2002 << 16, limit: 64 << 20 });
    }

    #[tokio::test]
    async fn the_smaller_limit_counts_the_plugins_or_the_hosts() {
        let grows = "(if (i32.eq (memory.grow (i32.const 30)) (i32.const -1)) (then unreachable)) unreachable";
        let hoard = || Component::method("lockDoor", grows);
        let limits = |memory| Terms { limits: PluginLimits { memory, ..PluginLimits::default() }, ..Terms::default() };
        let host = |memory_limit| RuntimeSettings { memory_limit, call_time_limit: LONG, ..RuntimeSettings::default() };
        for (plugins, hosts, counts) in [(1 << 20, 2 << 20, 1 << 20), (2 << 20, 1 << 20, 1 << 20)] {
            let failure = fail_on(instance_on(hoard(), host(hosts), limits(Some(plugins))).await).await;
            assert_eq!(failure, CallFailure::Memory { wanted: 32 << 16, limit: counts });
        }

        let endless = || Component::method("lockDoor", "(loop $again (br $again)) unreachable");
        let limits = PluginLimits { call_time: Some(SHORT), ..PluginLimits::default() };
        let terms = Terms { limits, ..Terms::default() };
        let failure = fail_on(instance_on(endless(), host(64 << 20), terms).await).await;
        assert_eq!(failure, CallFailure::Timeout { limit: SHORT });
        let limits = PluginLimits { call_time: Some(LONG), ..PluginLimits::default() };
        let terms = Terms { limits, ..Terms::default() };
        let settings = RuntimeSettings { call_time_limit: SHORT, ..RuntimeSettings::default() };
        let failure = fail_on(instance_on(endless(), settings, terms).await).await;
        assert_eq!(failure, CallFailure::Timeout { limit: SHORT });
    }

    #[tokio::test]
    async fn a_call_that_was_given_up_leaves_an_ended_instance() {
        let mut instance = instance(Component::method("lockDoor", "(loop $again (br $again)) unreachable")).await;
        let method = name("lockDoor");
        let call = instance.call_method(snapshot(), &method, "{}");
        let gave_up = tokio::time::timeout(Duration::from_millis(1), call).await;
        assert!(gave_up.is_err());
        assert_eq!(instance.call_method(snapshot(), &method, "{}").await, Err(CallFailure::Ended));
    }

    #[tokio::test]
    async fn a_call_can_move_between_threads() {
        let mut instance = instance(Component::echo("lockDoor")).await;
        let task = async move {
            instance.call_method(snapshot(), &name("lockDoor"), "1").await.map(|(answer, _)| answer.status)
        };
        assert_eq!(tokio::spawn(task).await.expect("no panic"), Ok(200));
    }

    #[tokio::test]
    async fn what_is_not_exported_cannot_be_called() {
        let mut instance = instance(Component::echo("lockDoor")).await;
        let failure = instance.changed(snapshot(), 1, "{}").await.expect_err("no reactions");
        assert_eq!(failure, CallFailure::Missing { interface: REACTIONS });
    }
}
