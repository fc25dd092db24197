//! Which devices an operator's rule is for, and the form in which that is kept.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use iothub_protocol::id::DeviceId;
use iothub_protocol::query::MAX_QUERY;
use serde::{Deserialize, Serialize};

use super::glob::DeviceGlob;

/// The devices of a pin or a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSelector {
    /// Every device whose id matches, also one that comes later.
    Matching(DeviceGlob),
    /// Those that a query gave when the rule was made. What the query would give later does not count: this host does not
    /// know the hub's tags, and a device should not change its behaviour because somebody edits one.
    Listed {
        /// The query, for people.
        query: Arc<str>,
        devices: Arc<BTreeSet<DeviceId>>,
    },
}

/// Why devices cannot be listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceSelectorError {
    #[error("the query gives no device")]
    Nobody,
    #[error("the query gives {found} devices; a rule lists at most {MAX_LISTED}")]
    TooMany { found: usize },
    #[error("a query has 1 to {MAX_QUERY} characters")]
    Query,
}

impl DeviceSelector {
    /// # Errors
    /// If there are no devices, or more than [`MAX_LISTED`].
    pub fn listed(query: &str, devices: BTreeSet<DeviceId>) -> Result<DeviceSelector, DeviceSelectorError> {
        if query.is_empty() || query.chars().count() > MAX_QUERY {
            return Err(DeviceSelectorError::Query);
        }
        match devices.len() {
            0 => Err(DeviceSelectorError::Nobody),
            found if found > MAX_LISTED => Err(DeviceSelectorError::TooMany { found }),
            _ => Ok(DeviceSelector::Listed { query: Arc::from(query), devices: Arc::new(devices) }),
        }
    }

    /// Every device.
    pub fn all() -> DeviceSelector {
        DeviceSelector::Matching(DeviceGlob::all())
    }

    pub fn includes(&self, device: &DeviceId) -> bool {
        match self {
            DeviceSelector::Matching(glob) => glob.matches(device),
            DeviceSelector::Listed { devices, .. } => devices.contains(device),
        }
    }

    /// What the operator gave: the pattern, or the query. A rule of the same text takes the place of an earlier one.
    pub fn text(&self) -> &str {
        match self {
            DeviceSelector::Matching(glob) => glob.as_str(),
            DeviceSelector::Listed { query, .. } => query,
        }
    }
}

impl From<DeviceGlob> for DeviceSelector {
    fn from(glob: DeviceGlob) -> DeviceSelector {
        DeviceSelector::Matching(glob)
    }
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSelector::Matching(glob) => glob.fmt(f),
            DeviceSelector::Listed { query, devices } => write!(f, "{} devices ({query})", devices.len()),
        }
    }
}

/// On disk. A host that knows patterns only reads an empty one where devices are listed, which is none, so that it runs
/// the rule nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KeptSelector {
    devices: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listed: Option<KeptList>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KeptList {
    query: String,
    #[serde(serialize_with = "write_ids", deserialize_with = "read_ids")]
    ids: Arc<BTreeSet<DeviceId>>,
}

impl KeptSelector {
    /// None if what is kept cannot be read.
    pub(super) fn read(&self) -> Option<DeviceSelector> {
        match &self.listed {
            None => DeviceGlob::parse(&self.devices).ok().map(DeviceSelector::Matching),
            Some(KeptList { query, ids }) => {
                Some(DeviceSelector::Listed { query: Arc::from(&**query), devices: ids.clone() })
            }
        }
    }

    pub(super) fn text(&self) -> &str {
        self.listed.as_ref().map_or(&self.devices, |listed| &listed.query)
    }
}

impl From<&DeviceSelector> for KeptSelector {
    fn from(selector: &DeviceSelector) -> KeptSelector {
        match selector {
            DeviceSelector::Matching(glob) => KeptSelector { devices: glob.to_string(), listed: None },
            DeviceSelector::Listed { query, devices } => {
                let listed = KeptList { query: query.to_string(), ids: devices.clone() };
                KeptSelector { devices: String::new(), listed: Some(listed) }
            }
        }
    }
}

fn write_ids<S: serde::Serializer>(ids: &Arc<BTreeSet<DeviceId>>, serializer: S) -> Result<S::Ok, S::Error> {
    BTreeSet::serialize(ids, serializer)
}

fn read_ids<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Arc<BTreeSet<DeviceId>>, D::Error> {
    BTreeSet::deserialize(deserializer).map(Arc::new)
}

/// Devices that one rule can list: as many as a host runs.
pub const MAX_LISTED: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> BTreeSet<DeviceId> {
        (0..count).map(|number| DeviceId::parse(&format!("door-{number}")).expect("an id")).collect()
    }

    #[test]
    fn a_list_holds_who_was_there() {
        let listed = DeviceSelector::listed("tags.site = 'A'", ids(3)).expect("a list");
        let includes = |id: &str| listed.includes(&DeviceId::parse(id).expect("an id"));
        assert_eq!((includes("door-2"), includes("door-3")), (true, false));
        assert_eq!((listed.text(), listed.to_string().as_str()), ("tags.site = 'A'", "3 devices (tags.site = 'A')"));
        assert_eq!(DeviceSelector::listed("x", ids(0)), Err(DeviceSelectorError::Nobody));
        let found = MAX_LISTED + 1;
        assert_eq!(DeviceSelector::listed("x", ids(found)), Err(DeviceSelectorError::TooMany { found }));
        assert_eq!(DeviceSelector::listed("", ids(1)), Err(DeviceSelectorError::Query));
    }

    #[test]
    fn what_is_kept_is_read_and_a_pattern_is_kept_as_ever() {
        let some = DeviceGlob::parse("door-1*").expect("a pattern");
        let listed = DeviceSelector::listed("*", ids(2)).expect("a list");
        for (selector, text) in [
            (some.into(), r#"{"devices":"door-1*"}"#),
            (listed, r#"{"devices":"","listed":{"query":"*","ids":["door-0","door-1"]}}"#),
        ] {
            let kept = KeptSelector::from(&selector);
            assert_eq!(serde_json::to_string(&kept).expect("JSON"), text);
            assert_eq!(serde_json::from_str::<KeptSelector>(text).expect("read").read(), Some(selector.clone()));
            assert_eq!(kept.text(), selector.text());
        }
    }
}
