//! Device twins: tags, desired and reported properties, their versions, metadata and limits; merge patches.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::address::Address;
use crate::configuration::{self, ConfigurationMarks};
use crate::error::{ErrorCode, HubError};
use crate::id::ModelId;
use crate::link::TwinDocument;
use crate::time;

mod change;
mod limits;
mod merge;
mod row;
mod section;
#[cfg(test)]
mod tests;

pub use limits::{Part, check_patch, check_size, limit, size};
pub use merge::{diff, merge};
pub use section::Section;

use merge::replacement;
use section::Stamped;

/// The twin of a device or a module as the hub keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Twin {
    pub tags: Map<String, Value>,
    pub desired: Section,
    pub reported: Section,
    /// Counts changes of tags and desired properties; the etag is made of it. A report leaves it alone (our choice:
    /// otherwise a device that reports would defeat every back end's If-Match).
    pub version: u64,
    /// The configurations that target the device, and what became of them.
    #[serde(default, skip_serializing_if = "ConfigurationMarks::is_empty")]
    pub configurations: ConfigurationMarks,
    /// The model that the device has announced last, if ever. Its change counts no version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ModelId>,
}

/// What a back end changes. `None` leaves a part alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TwinPatch {
    pub tags: Option<Map<String, Value>>,
    pub desired: Option<Map<String, Value>>,
}

/// What the hub knows of a device or a module beside its twin, shown together with it.
#[derive(Debug, Clone, PartialEq)]
pub struct TwinFacts {
    pub address: Address,
    /// Of the identity.
    pub device_etag: String,
    /// A module is always: it has no status of its own.
    pub enabled: bool,
    pub status_reason: Option<String>,
    pub status_updated: Option<DateTime<Utc>>,
    pub connected: bool,
    pub last_activity: Option<DateTime<Utc>>,
    /// Cloud-to-device messages that wait for the device.
    pub message_count: usize,
    /// `sas`, `selfSigned` or `certificateAuthority`.
    pub authentication_type: &'static str,
    /// `x509Thumbprint` as it is shown.
    pub thumbprints: Value,
}

impl Twin {
    pub fn new(now: DateTime<Utc>) -> Twin {
        let (desired, reported) = (Section::new(now), Section::new(now));
        let (tags, configurations) = (Map::new(), ConfigurationMarks::new());
        Twin { tags, desired, reported, version: 1, configurations, model_id: None }
    }

    /// Base64 of an 8-byte big-endian counter: `AAAAAAAAAAE=` is 1.
    pub fn etag(&self) -> String {
        BASE64.encode(self.version.to_be_bytes())
    }

    /// Whether an `If-Match` header, in any of the SDKs' spellings, allows a change. No header allows it.
    pub fn matches(&self, if_match: Option<&str>) -> bool {
        etag_matches(&self.etag(), if_match)
    }

    /// Merge. Returns the notice for the device if desired properties changed: the patch, with its `$version`.
    ///
    /// An empty `desired` changes nothing and counts no version (our choice where Azure's is not known).
    ///
    /// # Errors
    /// 400004 for what breaks a limit; nothing is changed then.
    pub fn patch(&mut self, patch: &TwinPatch, now: DateTime<Utc>) -> Result<Option<DesiredNotice>, HubError> {
        let tags = patch.tags.as_ref().map(|tags| merged(Part::Tags, &self.tags, tags)).transpose()?;
        let desired = patch.desired.as_ref().filter(|desired| !desired.is_empty());
        if let Some(desired) = desired {
            merged(Part::Desired, &self.desired.properties, desired)?;
            limits::check_text("the patch", desired, limit::PATCH_TEXT)?;
        }
        if tags.is_some() || desired.is_some() {
            self.version += 1;
        }
        if let Some(tags) = tags {
            self.tags = tags;
        }
        let Some(desired) = desired else { return Ok(None) };
        self.desired.merge(desired, Stamped::WithVersion, now);
        Ok(Some(DesiredNotice { version: self.desired.version, properties: desired.clone() }))
    }

    /// Replace the parts that `patch` names. The notice carries the whole new section with a `null` for everything that
    /// went, at every level, so that a device which merges ends up with the same.
    ///
    /// # Errors
    /// 400004 for what breaks a limit; nothing is changed then.
    pub fn replace(&mut self, patch: &TwinPatch, now: DateTime<Utc>) -> Result<Option<DesiredNotice>, HubError> {
        let whole =
            |part, new: &Option<Map<String, Value>>| new.as_ref().map(|new| merged(part, &Map::new(), new)).transpose();
        let tags = whole(Part::Tags, &patch.tags)?;
        let desired = whole(Part::Desired, &patch.desired)?;
        let notice = desired.as_ref().map(|new| replacement(&self.desired.properties, new));
        let notice = notice.filter(|notice| !notice.is_empty());
        if tags.is_some() || notice.is_some() {
            self.version += 1;
        }
        if let Some(tags) = tags {
            self.tags = tags;
        }
        let (Some(desired), Some(properties)) = (desired, notice) else { return Ok(None) };
        self.desired.replace(&desired, Stamped::WithVersion, now);
        Ok(Some(DesiredNotice { version: self.desired.version, properties }))
    }

    /// Merge a device's reported patch; the new reported version.
    ///
    /// # Errors
    /// 412001 if `expected` is not the current version, 400004 for what breaks a limit; nothing is changed then.
    pub fn report(
        &mut self,
        patch: &Map<String, Value>,
        expected: Option<u64>,
        now: DateTime<Utc>,
    ) -> Result<u64, HubError> {
        if expected.is_some_and(|version| version != self.reported.version) {
            let text = format!("the reported properties are at version {}", self.reported.version);
            return Err(HubError::new(ErrorCode::PreconditionFailed, text));
        }
        merged(Part::Reported, &self.reported.properties, patch)?;
        self.reported.merge(patch, Stamped::WithTime, now);
        Ok(self.reported.version)
    }

    /// The twin as a device gets it over MQTT: no tags, no metadata, no `properties` around it.
    pub fn device_json(&self) -> Value {
        json!({"desired": self.desired.versioned(), "reported": self.reported.versioned()})
    }

    /// The twin as a back end gets it.
    pub fn to_json(&self, facts: &TwinFacts) -> Value {
        let when = |time: Option<DateTime<Utc>>| time.map_or_else(|| time::NEVER.to_owned(), time::format);
        let mut twin = json!({
            "deviceId": facts.address.device(),
            "etag": self.etag(),
            "deviceEtag": facts.device_etag,
            "status": if facts.enabled { "enabled" } else { "disabled" },
            "statusReason": facts.status_reason,
            "statusUpdateTime": when(facts.status_updated),
            "connectionState": if facts.connected { "Connected" } else { "Disconnected" },
            "lastActivityTime": when(facts.last_activity),
            "cloudToDeviceMessageCount": facts.message_count,
            "authenticationType": facts.authentication_type,
            "x509Thumbprint": facts.thumbprints,
            "modelId": self.model_id.as_ref().map_or("", ModelId::as_str),
            "version": self.version,
            "tags": self.tags,
            "properties": {"desired": self.desired.to_json(), "reported": self.reported.to_json()},
        });
        match facts.address.module() {
            None => twin["capabilities"] = json!({"iotEdge": false}),
            Some(module) => twin["moduleId"] = json!(module),
        }
        if !self.configurations.is_empty() {
            twin["configurations"] = configuration::marks_to_json(&self.configurations);
        }
        twin
    }
}

/// News of desired properties for a device.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredNotice {
    pub version: u64,
    /// A merge patch.
    pub properties: Map<String, Value>,
}

impl DesiredNotice {
    /// The body on the wire: the version stands in it as well as in the topic, as the Python SDK insists.
    pub fn to_json(&self) -> Value {
        let mut body = self.properties.clone();
        body.insert("$version".into(), json!(self.version));
        Value::Object(body)
    }

    /// Read a notice's body; keys with `$` are the hub's.
    pub fn from_json(body: &[u8]) -> Option<DesiredNotice> {
        let Ok(Value::Object(mut properties)) = serde_json::from_slice(body) else { return None };
        let version = take_version(&mut properties)?;
        Some(DesiredNotice { version, properties })
    }
}

impl TwinDocument {
    /// Read the answer to a twin GET.
    pub fn from_json(body: &[u8]) -> Option<TwinDocument> {
        let Ok(Value::Object(mut document)) = serde_json::from_slice(body) else { return None };
        let mut section = |name: &str| match document.remove(name) {
            Some(Value::Object(mut section)) => take_version(&mut section).map(|version| (section, version)),
            _ => None,
        };
        let (desired, desired_version) = section("desired")?;
        let (reported, reported_version) = section("reported")?;
        Some(TwinDocument { desired, desired_version, reported, reported_version })
    }
}

impl TwinPatch {
    /// Read the body of `PATCH` or `PUT /twins/{id}`; members other than tags and desired properties are ignored, as
    /// the SDKs' samples send more.
    pub fn from_json(body: &[u8]) -> Result<TwinPatch, HubError> {
        let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is not JSON: {e}")))?;
        let Value::Object(mut body) = value else { return Err(invalid("the body must be a JSON object".into())) };
        let mut properties = match body.remove("properties") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(properties)) => properties,
            Some(_) => return Err(invalid("properties must be an object".into())),
        };
        let section = |value: Option<Value>, name: &str| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(mut section)) => {
                // A twin read and sent back carries the hub's own members.
                section.retain(|key, _| !matches!(key.as_str(), "$version" | "$metadata"));
                Ok(Some(section))
            }
            Some(_) => Err(invalid(format!("{name} must be an object"))),
        };
        let tags = section(body.remove("tags"), "tags")?;
        let desired = section(properties.remove("desired"), "properties.desired")?;
        Ok(TwinPatch { tags, desired })
    }
}

/// Whether an `If-Match` header (`*`, `"*"`, `AAA=`, `"AAA="`) allows a change of what has `etag`.
pub fn etag_matches(etag: &str, if_match: Option<&str>) -> bool {
    if_match.map(|header| header.trim().trim_matches('"')).is_none_or(|wanted| wanted == "*" || wanted == etag)
}

fn take_version(section: &mut Map<String, Value>) -> Option<u64> {
    let version = section.remove("$version")?.as_u64();
    section.remove("$metadata");
    version
}

fn merged(
    part: Part,
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, HubError> {
    check_patch(part, patch)?;
    let mut next = current.clone();
    merge(&mut next, patch);
    check_size(part, &next)?;
    Ok(next)
}
