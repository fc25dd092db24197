//! The port to the devices and their modules.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;

use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::job::TwinUpdate;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::plugin_report::PinState;
use iothub_protocol::query::Condition;
use iothub_protocol::quota::tier::Sku;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};

/// Which devices to select, and what to tell of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    pub condition: Condition,
    /// Only devices and modules of these, of which there are some thousand at most; of all if absent. Those that do not
    /// exist are passed over, as are devices for a condition of modules, and modules for one of devices.
    pub among: Option<Vec<Address>>,
    pub labels: Vec<TagPath>,
}

/// A device or module that was selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    pub address: Address,
    /// The values of [`Selection::labels`], in their order. Many devices have the same, and may share it.
    pub labels: Box<[Option<Arc<str>>]>,
}

/// What a preview asks of devices.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    pub condition: Condition,
    /// As [`Selection::among`].
    pub among: Option<Vec<Address>>,
    /// At most 32.
    pub marks: Vec<Condition>,
}

/// A device or module as a preview sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    pub address: Address,
    /// Which of [`Survey::marks`] hold, the first in the lowest bit. One that is of other rows does not.
    pub marks: u32,
    pub standing: Standing,
}

/// How a device stands at this moment, as far as the fleet knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    pub is_connected: Option<bool>,
    /// Connected, and a method would reach it.
    pub is_listening: Option<bool>,
    pub is_disabled: Option<bool>,
}

/// A tier, and which of its throttles jobs are under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// That of the hub's own jobs.
    Jobs(Sku),
    /// Those of a back end's calls.
    Calls(Sku),
}

/// Reads the labels of a selection from one twin after the other, and keeps one of each value: a million devices are in
/// some hundred buildings.
#[derive(Debug)]
pub struct LabelReader<'s> {
    labels: &'s [TagPath],
    values: HashSet<Arc<str>>,
}

impl LabelReader<'_> {
    pub fn new(selection: &Selection) -> LabelReader<'_> {
        LabelReader { labels: &selection.labels, values: HashSet::new() }
    }

    /// For [`Selected::labels`]. Of the twin, nothing but its tags is looked at.
    pub fn read(&mut self, twin: &Value) -> Box<[Option<Arc<str>>]> {
        self.labels.iter().map(|label| label.read(twin).map(|value| shared(&mut self.values, value))).collect()
    }
}

fn shared(values: &mut HashSet<Arc<str>>, value: String) -> Arc<str> {
    if let Some(known) = values.get(value.as_str()) {
        return Arc::clone(known);
    }
    let value: Arc<str> = value.into();
    values.insert(Arc::clone(&value));
    value
}

/// The devices and modules that jobs act on.
///
/// Calls run concurrently, each on a task of its own, but never two at once for one of them, apart from updates that
/// take back a pin. They are dropped when the engine stops.
pub trait Fleet: Send + Sync + 'static {
    /// The devices, or the modules if the condition is of them, whose twins match; asked when a job starts, and for a
    /// list some thousand at a time.
    fn select(&self, selection: &Selection) -> impl Future<Output = Result<Vec<Selected>, HubError>> + Send;

    /// Invoke a method and wait for the answer, as long as the method's own time-outs say. `DeviceNotOnline` is the
    /// error for a device that was not there, as the engine may wait for it after a restart.
    fn call_method(
        &self,
        device: &Address,
        method: &DirectMethod,
    ) -> impl Future<Output = Result<MethodResponse, HubError>> + Send;

    /// Merge into the twin. Done twice it must be as done once: an update is repeated when a crash hid its outcome.
    fn patch_twin(&self, device: &Address, update: &TwinUpdate) -> impl Future<Output = Result<(), HubError>> + Send;

    /// How each of these devices stands to the pin of a plugin; those that do not exist are left out. Asked again and
    /// again while a job waits for reports, for some hundred devices at most, and no sooner than a second after the
    /// answer before.
    fn pin_states(
        &self,
        plugin: &str,
        devices: &[Address],
    ) -> impl Future<Output = Result<HashMap<Address, PinState>, HubError>> + Send;

    /// Which of these devices or modules have twins that match, asked as [`Fleet::pin_states`] is while a job waits.
    fn matching(
        &self,
        condition: &Condition,
        devices: &[Address],
    ) -> impl Future<Output = Result<HashSet<Address>, HubError>> + Send;

    /// Look at the devices and modules that a preview is about, and give them some at a time, until nobody takes them.
    fn survey(
        &self,
        survey: &Survey,
        pages: &mpsc::Sender<Vec<Surveyed>>,
    ) -> impl Future<Output = Result<(), HubError>> + Send;

    /// The tier that the hub keeps to, if it is known to keep to one.
    fn quota(&self) -> Option<Quota> {
        None
    }

    /// Tells of each device that begins to listen for methods, from now on. `None` if the hub does not say: then devices
    /// that are waited for are asked now and then.
    fn arrivals(&self) -> Option<broadcast::Receiver<Address>> {
        None
    }

    /// Tells of each device and module that was created, has connected or disconnected, or whose twin has changed, from now
    /// on and once [`Fleet::select`] finds it so. `None` if the hub does not say: then a continuous job looks at all now and then.
    fn changes(&self) -> Option<broadcast::Receiver<Address>> {
        None
    }
}
