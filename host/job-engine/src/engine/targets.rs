//! Which devices a job begins with, beyond those of its condition.

use iothub_protocol::address::Address;
use iothub_protocol::job::policy::JobPolicy;
use iothub_protocol::job::targets::{JobTargets, List};
use iothub_protocol::query::{Condition, QueryError};

use crate::fleet::Selected;

/// What else there is to a selection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scope {
    /// The devices, instead of those of the condition.
    pub list: Option<List>,
    /// Those for which it holds are left out.
    pub exclude: Option<Condition>,
    /// So are these, and modules of these.
    pub exclude_list: Option<List>,
    /// Of the first stages of its policy.
    pub stages: Vec<Condition>,
}

impl Scope {
    /// # Errors
    /// If a condition is none. It was one when the job was made.
    pub fn new(targets: Option<&JobTargets>, policy: Option<&JobPolicy>) -> Result<Scope, QueryError> {
        let stages = policy.iter().flat_map(|policy| &policy.stages).filter_map(|stage| stage.condition.as_deref());
        let exclude = targets.and_then(|targets| targets.exclude.as_ref());
        let condition = exclude.and_then(|exclude| exclude.condition.as_deref());
        Ok(Scope {
            list: targets.and_then(|targets| targets.list.clone()),
            exclude: condition.map(Condition::parse_job).transpose()?,
            exclude_list: exclude.and_then(|exclude| exclude.list.clone()),
            stages: stages.map(Condition::parse_job).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the condition says it all.
    pub fn is_plain(&self) -> bool {
        *self == Scope::default()
    }
}

/// The devices that a job begins with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    pub devices: Vec<Selected>,
    /// How many more would be among them if they were not excluded.
    pub excluded: u64,
    /// Of each device the number of the stage by condition that it is in, counted from 1; 0 if it is in none. Empty if
    /// there are no such stages.
    pub stages: Vec<u32>,
}

impl From<Vec<Selected>> for Found {
    fn from(devices: Vec<Selected>) -> Found {
        Found { devices, ..Found::default() }
    }
}

/// Whether a device is in a sorted list, or is a module of one that is.
pub fn includes(sorted: &[Address], device: &Address) -> bool {
    sorted.binary_search(device).is_ok()
        || (device.is_module() && sorted.binary_search(&Address::from(device.device())).is_ok())
}
