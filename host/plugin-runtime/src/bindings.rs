//! Between generated code and ours: the only place that names generated types.
//!
//! The host asks a component for no world. Each interface that a plugin may export has a private world of its own
//! here, and is bound by itself, so that a plugin exports what it has and nothing else.

use iothub_protocol::id::DeviceId;
use iothub_protocol::link::CloudMessage;
use wasmtime::Store;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use crate::context::{IncomingMessage, MessageSource, OutgoingTelemetry, PeerMessage, Refused, Timer};
use crate::guest::Guest;
use crate::inspect::{self, LIFECYCLE, MESSAGES, METHODS, REACTIONS, TICKS};
use crate::instance::{GuestResponse, Verdict};
use crate::output::Level;
use crate::signature;
use crate::version::{LoadError, VersionTag};

use imports::iothub::device::{config, log, peers, state, telemetry, timers, twin, types};

mod drafts;
mod wasi;

mod imports {
    wasmtime::component::bindgen!({
        path: ["../../wit/device", "../../wit/plugin"],
        world: "iothub:plugin/full-imports@0.1.0",
    });
}

mod methods {
    wasmtime::component::bindgen!({
        path: ["../../wit/device", "../../wit/plugin"],
        inline: "package latch:host; world answers-methods { export iothub:plugin/methods@0.1.0; }",
        world: "latch:host/answers-methods",
        exports: { default: async },
        with: { "iothub:device/types": super::imports::iothub::device::types },
    });
}

mod reactions {
    wasmtime::component::bindgen!({
        path: ["../../wit/device", "../../wit/plugin"],
        inline: "package latch:host; world reacts { export iothub:plugin/reactions@0.1.0; }",
        world: "latch:host/reacts",
        exports: { default: async },
        with: { "iothub:device/types": super::imports::iothub::device::types },
    });
}

mod messages {
    wasmtime::component::bindgen!({
        path: ["../../wit/device", "../../wit/plugin"],
        inline: "package latch:host; world gets-messages { export iothub:plugin/messages@0.1.0; }",
        world: "latch:host/gets-messages",
        exports: { default: async },
    });
}

mod ticks {
    wasmtime::component::bindgen!({
        path: ["../../wit/device", "../../wit/plugin"],
        inline: "package latch:host; world ticks-on { export iothub:plugin/ticks@0.1.0; }",
        world: "latch:host/ticks-on",
        exports: { default: async },
        with: {
            "iothub:device/types": super::imports::iothub::device::types,
            "iothub:device/timers": super::imports::iothub::device::timers,
        },
    });
}

mod lifecycle {
    wasmtime::component::bindgen!({
        path: ["../../wit/device", "../../wit/plugin"],
        inline: "package latch:host; world takes-over { export iothub:plugin/lifecycle@0.1.0; }",
        world: "latch:host/takes-over",
        exports: { default: async },
    });
}

/// Offer to guests what they may import.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasi::add_to_linker(linker)?;
    drafts::add_to_linker(linker)?;
    imports::FullImports::add_to_linker::<_, HasSelf<Guest>>(linker, |guest| guest)
}

/// Which of our interfaces a component exports, looked up once for each version.
#[derive(Clone)]
pub(crate) struct Exports {
    methods: Option<methods::AnswersMethodsIndices>,
    reactions: Option<reactions::ReactsIndices>,
    messages: Option<messages::GetsMessagesIndices>,
    ticks: Option<ticks::TicksOnIndices>,
    lifecycle: Option<lifecycle::TakesOverIndices>,
}

impl Exports {
    /// Find them, and check the type of every function in them.
    pub(crate) fn find(component: &Component, pre: &InstancePre<Guest>) -> Result<Exports, LoadError> {
        let compile = |error: wasmtime::Error| LoadError::Compile { reason: format!("{error:#}") };
        let mut exports = Exports { methods: None, reactions: None, messages: None, ticks: None, lifecycle: None };
        if check(component, METHODS, METHODS_FUNCTIONS)? {
            exports.methods = Some(methods::AnswersMethodsIndices::new(pre).map_err(compile)?);
        }
        if check(component, REACTIONS, REACTIONS_FUNCTIONS)? {
            exports.reactions = Some(reactions::ReactsIndices::new(pre).map_err(compile)?);
        }
        if check(component, MESSAGES, MESSAGES_FUNCTIONS)? {
            exports.messages = Some(messages::GetsMessagesIndices::new(pre).map_err(compile)?);
        }
        if check(component, TICKS, TICKS_FUNCTIONS)? {
            exports.ticks = Some(ticks::TicksOnIndices::new(pre).map_err(compile)?);
        }
        if check(component, LIFECYCLE, LIFECYCLE_FUNCTIONS)? {
            exports.lifecycle = Some(lifecycle::TakesOverIndices::new(pre).map_err(compile)?);
        }
        Ok(exports)
    }

    pub(crate) fn messages(&self) -> bool {
        self.messages.is_some()
    }

    /// Whether there is anything that a self-test calls.
    pub(crate) fn can_be_asked(&self) -> bool {
        self.methods.is_some() || self.reactions.is_some() || self.lifecycle.is_some()
    }

    /// Whether timers can fire.
    pub(crate) fn ticks(&self) -> bool {
        self.ticks.is_some()
    }

    pub(crate) fn lifecycle(&self) -> bool {
        self.lifecycle.is_some()
    }

    pub(crate) async fn instantiate(
        &self,
        pre: &InstancePre<Guest>,
        store: &mut Store<Guest>,
    ) -> wasmtime::Result<Bound> {
        let instance = pre.instantiate_async(&mut *store).await?;
        let methods = self.methods.as_ref().map(|indices| indices.load(&mut *store, &instance)).transpose()?;
        let reactions = self.reactions.as_ref().map(|indices| indices.load(&mut *store, &instance)).transpose()?;
        let messages = self.messages.as_ref().map(|indices| indices.load(&mut *store, &instance)).transpose()?;
        let ticks = self.ticks.as_ref().map(|indices| indices.load(&mut *store, &instance)).transpose()?;
        let lifecycle = self.lifecycle.as_ref().map(|indices| indices.load(&mut *store, &instance)).transpose()?;
        Ok(Bound { methods, reactions, messages, ticks, lifecycle })
    }
}

/// The exports of one instance. Each function answers `None` if the component does not export its interface.
pub(crate) struct Bound {
    methods: Option<methods::AnswersMethods>,
    reactions: Option<reactions::Reacts>,
    messages: Option<messages::GetsMessages>,
    ticks: Option<ticks::TicksOn>,
    lifecycle: Option<lifecycle::TakesOver>,
}

impl Bound {
    pub(crate) async fn names(&self, store: &mut Store<Guest>) -> wasmtime::Result<Option<Vec<String>>> {
        let Some(bound) = &self.methods else { return Ok(None) };
        bound.iothub_plugin_methods().call_names(store).await.map(Some)
    }

    pub(crate) async fn call(
        &self,
        store: &mut Store<Guest>,
        name: &str,
        payload: String,
    ) -> wasmtime::Result<Option<GuestResponse>> {
        let Some(bound) = &self.methods else { return Ok(None) };
        let request = methods::exports::iothub::plugin::methods::Request { name: name.to_owned(), payload };
        let response = bound.iothub_plugin_methods().call_call(store, &request).await?;
        Ok(Some(GuestResponse { status: response.status, payload: response.payload }))
    }

    pub(crate) async fn watched(&self, store: &mut Store<Guest>) -> wasmtime::Result<Option<Vec<String>>> {
        let Some(bound) = &self.reactions else { return Ok(None) };
        bound.iothub_plugin_reactions().call_watched(store).await.map(Some)
    }

    pub(crate) async fn changed(
        &self,
        store: &mut Store<Guest>,
        version: u64,
        patch: String,
    ) -> wasmtime::Result<Option<Verdict>> {
        use reactions::exports::iothub::plugin::reactions as generated;
        let Some(bound) = &self.reactions else { return Ok(None) };
        let change = generated::Change { version, patch };
        let verdict = match bound.iothub_plugin_reactions().call_changed(store, &change).await? {
            generated::Verdict::Done => Verdict::Done,
            generated::Verdict::Retry(reason) => Verdict::Retry(reason),
        };
        Ok(Some(verdict))
    }

    pub(crate) async fn received(
        &self,
        store: &mut Store<Guest>,
        incoming: &IncomingMessage,
    ) -> wasmtime::Result<Option<Verdict>> {
        use messages::exports::iothub::plugin::messages as generated;
        let Some(bound) = &self.messages else { return Ok(None) };
        let message = incoming.message.clone();
        let message = generated::Message {
            source: match &incoming.source {
                MessageSource::Cloud => generated::Source::Cloud,
                MessageSource::Peer(device) => generated::Source::Peer(device.to_string()),
            },
            id: message.message_id,
            correlation_id: message.correlation_id,
            user_id: message.user_id,
            expiry: message.expiry.map(|expiry| u64::try_from(expiry.timestamp_millis()).unwrap_or(0)),
            content_type: message.content_type,
            content_encoding: message.content_encoding,
            properties: message.properties,
            body: message.body,
        };
        let verdict = match bound.iothub_plugin_messages().call_received(store, &message).await? {
            generated::Verdict::Done => Verdict::Done,
            generated::Verdict::Retry(reason) => Verdict::Retry(reason),
        };
        Ok(Some(verdict))
    }

    pub(crate) async fn fired(
        &self,
        store: &mut Store<Guest>,
        name: &str,
        timer: &Timer,
    ) -> wasmtime::Result<Option<Verdict>> {
        use ticks::exports::iothub::plugin::ticks as generated;
        let Some(bound) = &self.ticks else { return Ok(None) };
        let verdict = match bound.iothub_plugin_ticks().call_fired(store, &shown(name, timer)).await? {
            generated::Verdict::Done => Verdict::Done,
            generated::Verdict::Retry(reason) => Verdict::Retry(reason),
        };
        Ok(Some(verdict))
    }

    pub(crate) async fn state_format(&self, store: &mut Store<Guest>) -> wasmtime::Result<Option<u32>> {
        let Some(bound) = &self.lifecycle else { return Ok(None) };
        bound.iothub_plugin_lifecycle().call_state_format(store).await.map(Some)
    }

    pub(crate) async fn activated(
        &self,
        store: &mut Store<Guest>,
        previous: Option<&VersionTag>,
    ) -> wasmtime::Result<Option<Result<(), String>>> {
        use lifecycle::exports::iothub::plugin::lifecycle as generated;
        let Some(bound) = &self.lifecycle else { return Ok(None) };
        let previous = previous.map(|tag| generated::Version {
            label: tag.label.to_string(),
            hash: tag.hash.to_string(),
            state_format: tag.state_format,
        });
        bound.iothub_plugin_lifecycle().call_activated(store, previous.as_ref()).await.map(Some)
    }
}

fn shown(name: &str, timer: &Timer) -> timers::Timer {
    timers::Timer { name: name.to_owned(), due: timer.due, payload: timer.payload.to_vec() }
}

/// Whether `component` exports `interface`; if it does, its functions have the types that the host calls.
fn check(
    component: &Component,
    interface: &str,
    functions: &[(&'static str, &'static str)],
) -> Result<bool, LoadError> {
    let engine = component.engine();
    let ty = component.component_type();
    let Some((name, export)) = ty.exports(engine).find(|(name, _)| inspect::is_interface(name, interface)) else {
        return Ok(false);
    };
    for &(function, expected) in functions {
        let found = match &export.ty {
            ComponentItem::ComponentInstance(instance) => match instance.get_export(engine, function) {
                Some(item) => signature::describe(&item.ty),
                None => "nothing of that name".to_owned(),
            },
            _ => "no interface".to_owned(),
        };
        if found != expected {
            return Err(LoadError::Type { interface: name.to_owned(), function, expected, found });
        }
    }
    Ok(true)
}

/// The functions of `methods.wit`, as [`signature::describe`] writes their types.
const METHODS_FUNCTIONS: &[(&str, &str)] = &[
    ("names", "func() -> list<string>"),
    ("call", "func(record{name: string, payload: string}) -> record{status: s32, payload: string}"),
];

/// The functions of `reactions.wit`.
const REACTIONS_FUNCTIONS: &[(&str, &str)] = &[
    ("watched", "func() -> list<string>"),
    ("changed", "func(record{version: u64, patch: string}) -> variant{done, retry(string)}"),
];

/// The functions of `messages.wit`.
const MESSAGES_FUNCTIONS: &[(&str, &str)] = &[(
    "received",
    "func(record{source: variant{cloud, peer(string)}, id: option<string>, correlation-id: option<string>, \
     user-id: option<string>, expiry: option<u64>, content-type: option<string>, content-encoding: option<string>, \
     properties: list<tuple<string, string>>, body: list<u8>}) -> variant{done, retry(string)}",
)];

/// The functions of `ticks.wit`.
const TICKS_FUNCTIONS: &[(&str, &str)] =
    &[("fired", "func(record{name: string, due: u64, payload: list<u8>}) -> variant{done, retry(string)}")];

/// The functions of `lifecycle.wit`.
const LIFECYCLE_FUNCTIONS: &[(&str, &str)] = &[
    ("state-format", "func() -> u32"),
    ("activated", "func(option<record{label: string, hash: string, state-format: u32}>) -> result<_, string>"),
];

impl From<Refused> for types::Error {
    fn from(refused: Refused) -> types::Error {
        match refused {
            Refused::Denied => types::Error::Denied,
            Refused::Invalid(reason) => types::Error::Invalid(reason),
            Refused::TooLarge => types::Error::TooLarge,
            Refused::Busy => types::Error::Busy,
        }
    }
}

impl types::Host for Guest {}

impl config::Host for Guest {
    fn get(&mut self, key: String) -> Option<String> {
        self.terms.config.get(&key).cloned()
    }

    fn all(&mut self) -> Vec<(String, String)> {
        self.settings()
    }

    fn device_id(&mut self) -> String {
        self.call.device_id().to_owned()
    }
}

impl log::Host for Guest {
    fn log(&mut self, level: log::Level, message: String) {
        let level = match level {
            log::Level::Trace => Level::Trace,
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        };
        self.output.line(level, &message);
    }
}

impl peers::Host for Guest {
    fn send(&mut self, device_id: String, message: peers::Message) -> Result<(), types::Error> {
        let to = DeviceId::parse(&device_id).map_err(|error| types::Error::Invalid(error.to_string()))?;
        if !self.terms.grants.peers.iter().any(|granted| granted.matches(&to)) {
            return Err(types::Error::Denied);
        }
        let peers::Message { content_type, properties, body } = message;
        let message = CloudMessage { content_type, properties, body, ..CloudMessage::default() };
        Ok(self.call.send_to_peer(PeerMessage { to, message })?)
    }
}

impl state::Host for Guest {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.call.state(&key).cloned()
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), types::Error> {
        Ok(self.call.set_state(key, value)?)
    }

    fn delete(&mut self, key: String) {
        self.call.delete_state(key);
    }

    fn keys(&mut self) -> Vec<String> {
        self.call.state_keys()
    }
}

impl telemetry::Host for Guest {
    fn send(&mut self, message: telemetry::Message) -> Result<(), types::Error> {
        let telemetry::Message { body, content_type, properties } = message;
        Ok(self.call.send(OutgoingTelemetry { body, content_type, properties })?)
    }
}

impl timers::Host for Guest {
    fn set(&mut self, name: String, when: timers::When, payload: Vec<u8>) -> Result<(), types::Error> {
        if !self.has_ticks {
            return Err(types::Error::Denied);
        }
        let due = match when {
            timers::When::After(milliseconds) => self.call.now().saturating_add(milliseconds),
            timers::When::At(due) => due,
        };
        Ok(self.call.set_timer(name, Timer { due, payload: payload.into() })?)
    }

    fn cancel(&mut self, name: String) {
        self.call.cancel_timer(name);
    }

    fn pending(&mut self) -> Vec<timers::Timer> {
        self.call.timers().into_iter().map(|(name, timer)| shown(name, timer)).collect()
    }
}

impl twin::Host for Guest {
    fn desired(&mut self) -> twin::DesiredProperties {
        let (version, properties) = self.call.desired();
        twin::DesiredProperties { version, properties }
    }

    fn reported(&mut self) -> String {
        self.call.reported()
    }

    fn report(&mut self, patch: String) -> Result<(), types::Error> {
        Ok(self.call.report(&patch)?)
    }
}
