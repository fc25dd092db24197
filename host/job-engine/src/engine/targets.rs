//! Which devices a job begins with, beyond those of its condition.

use iothub_protocol::address::Address;
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
}

impl Scope {
    /// # Errors
    /// If a condition is none. It was one when the job was made.
    pub(super) fn new(targets: Option<&JobTargets>) -> Result<Scope, QueryError> {
        let Some(JobTargets { list, exclude }) = targets else { return Ok(Scope::default()) };
        let condition = exclude.as_ref().and_then(|exclude| exclude.condition.as_deref());
        Ok(Scope {
            list: list.clone(),
            exclude: condition.map(Condition::parse_job).transpose()?,
            exclude_list: exclude.as_ref().and_then(|exclude| exclude.list.clone()),
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
}

impl From<Vec<Selected>> for Found {
    fn from(devices: Vec<Selected>) -> Found {
        Found { devices, excluded: 0 }
    }
}

/// Whether a device is in a sorted list, or is a module of one that is.
pub fn includes(sorted: &[Address], device: &Address) -> bool {
    sorted.binary_search(device).is_ok()
        || (device.is_module() && sorted.binary_search(&Address::from(device.device())).is_ok())
}
