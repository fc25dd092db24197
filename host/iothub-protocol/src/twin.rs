//! Device twins: tags, desired and reported properties, their versions, metadata and limits; merge patches.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{ErrorCode, HubError};
use crate::link::TwinDocument;
use crate::time;

/// Limits that the hub enforces on a twin; the numbers are Azure's.
pub mod limit {
    /// Bytes of all tags, by the rule of [`super::size`].
    pub const TAGS: usize = 8 * 1024;
    /// Bytes of desired and of reported properties, each.
    pub const PROPERTIES: usize = 32 * 1024;
    /// Bytes of a key.
    pub const KEY: usize = 1024;
    /// Bytes of a string value.
    pub const STRING: usize = 4096;
    /// Levels of objects below tags, desired or reported.
    pub const DEPTH: usize = 10;
    /// Largest integer; the smallest is `-INTEGER - 1`.
    pub const INTEGER: i64 = 4_503_599_627_370_495;
}

/// Merge `patch` into `target` (RFC 7396): objects merge, `null` deletes, anything else replaces.
pub fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(inner) => merge(object_at(target, key), inner),
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

/// The merge patch that leads from `old` to `new`: removed keys are `null`, what is equal is left out.
///
/// Whoever must combine patches keeps both documents and takes their difference: two merge patches have no exact sum
/// (`{"a": null}` then `{"a": {}}` empties an object, which no single patch can say without knowing what was there).
pub fn diff(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match (old.get(key), value) {
            (Some(before), after) if before == after => {}
            (Some(Value::Object(before)), Value::Object(after)) => {
                patch.insert(key.clone(), Value::Object(diff(before, after)));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    patch
}

/// One of the three parts of a twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Tags,
    Desired,
    Reported,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Tags => "tags",
            Part::Desired => "desired",
            Part::Reported => "reported",
        }
    }

    fn limit(self) -> usize {
        match self {
            Part::Tags => limit::TAGS,
            Part::Desired | Part::Reported => limit::PROPERTIES,
        }
    }
}

/// Whether `patch` keeps the rules for keys, values and depth.
///
/// # Errors
/// 400004 with the path of what is wrong.
pub fn check_patch(part: Part, patch: &Map<String, Value>) -> Result<(), HubError> {
    check_object(part.name(), patch, 1)
}

/// Whether `section`, as it would be after a merge, is within the part's size.
///
/// # Errors
/// 400004 naming size and limit.
pub fn check_size(part: Part, section: &Map<String, Value>) -> Result<(), HubError> {
    let found = size(section);
    if found > part.limit() {
        let text = format!("{} would have {found} bytes; the limit is {}", part.name(), part.limit());
        return Err(HubError::new(ErrorCode::ArgumentInvalid, text));
    }
    Ok(())
}

/// A section's size as the hub counts it: keys and values; a number is 8 bytes, a boolean 4, control characters none.
pub fn size(section: &Map<String, Value>) -> usize {
    section.iter().map(|(key, value)| text_size(key) + value_size(value)).sum()
}

fn text_size(text: &str) -> usize {
    text.chars().filter(|c| !c.is_control()).map(char::len_utf8).sum()
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text_size(text),
        Value::Array(items) => items.iter().map(value_size).sum(),
        Value::Object(object) => size(object),
    }
}

fn check_object(path: &str, object: &Map<String, Value>, depth: usize) -> Result<(), HubError> {
    let invalid = |text: String| Err(HubError::new(ErrorCode::ArgumentInvalid, text));
    if depth > limit::DEPTH + 1 {
        return invalid(format!("{path} is nested deeper than {} levels", limit::DEPTH));
    }
    for (key, value) in object {
        if key.is_empty() || key.len() > limit::KEY {
            return invalid(format!("{path} has a key of {} bytes; 1 to {} are allowed", key.len(), limit::KEY));
        }
        if let Some(character) = key.chars().find(|c| c.is_control() || matches!(c, '.' | '$' | ' ')) {
            return invalid(format!("the key {key:?} in {path} contains {character:?}"));
        }
        check_value(&format!("{path}.{key}"), value, depth)?;
    }
    Ok(())
}

fn check_value(path: &str, value: &Value, depth: usize) -> Result<(), HubError> {
    let invalid = |text: String| Err(HubError::new(ErrorCode::ArgumentInvalid, text));
    match value {
        Value::String(text) if text.len() > limit::STRING => {
            invalid(format!("{path} is a string of {} bytes; the limit is {}", text.len(), limit::STRING))
        }
        Value::Number(number) => {
            let fits = match (number.as_i64(), number.as_u64()) {
                (Some(n), _) => (-limit::INTEGER - 1..=limit::INTEGER).contains(&n),
                (None, Some(_)) => false,
                (None, None) => true,
            };
            if fits { Ok(()) } else { invalid(format!("{path} is an integer outside of ±{}", limit::INTEGER)) }
        }
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(i, item)| check_value(&format!("{path}[{i}]"), item, depth + 1))
        }
        Value::Object(object) => check_object(path, object, depth + 1),
        _ => Ok(()),
    }
}

/// Desired or reported properties with their bookkeeping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Section {
    pub properties: Map<String, Value>,
    /// `$lastUpdated` (and `$lastUpdatedVersion`, desired only) for each level, mirroring `properties`.
    pub metadata: Map<String, Value>,
    /// Begins at 1 and grows by one with each change.
    pub version: u64,
}

impl Section {
    fn new(now: DateTime<Utc>) -> Section {
        let metadata = Map::from_iter([("$lastUpdated".to_owned(), json!(time::format(now)))]);
        Section { properties: Map::new(), metadata, version: 1 }
    }

    fn to_json(&self) -> Value {
        let mut body = self.properties.clone();
        body.insert("$metadata".into(), Value::Object(self.metadata.clone()));
        body.insert("$version".into(), json!(self.version));
        Value::Object(body)
    }

    fn versioned(&self) -> Value {
        let mut body = self.properties.clone();
        body.insert("$version".into(), json!(self.version));
        Value::Object(body)
    }
}

/// A device's twin as the hub keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Twin {
    pub tags: Map<String, Value>,
    pub desired: Section,
    pub reported: Section,
    /// Counts changes of tags and desired properties; the etag is made of it. A report leaves it alone (our choice:
    /// otherwise a device that reports would defeat every back end's If-Match).
    pub version: u64,
}

/// What a back end changes. `None` leaves a part alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TwinPatch {
    pub tags: Option<Map<String, Value>>,
    pub desired: Option<Map<String, Value>>,
}

/// What the hub knows of a device beside its twin, shown together with it.
#[derive(Debug, Clone, PartialEq)]
pub struct TwinFacts {
    pub device_id: crate::id::DeviceId,
    pub device_etag: String,
    pub enabled: bool,
    pub status_reason: Option<String>,
    pub status_updated: Option<DateTime<Utc>>,
    pub connected: bool,
    pub last_activity: Option<DateTime<Utc>>,
}

impl Twin {
    pub fn new(now: DateTime<Utc>) -> Twin {
        Twin { tags: Map::new(), desired: Section::new(now), reported: Section::new(now), version: 1 }
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
        if let Some(desired) = &patch.desired {
            merged(Part::Desired, &self.desired.properties, desired)?;
        }
        let desired = patch.desired.as_ref().filter(|desired| !desired.is_empty());
        if patch.tags.is_some() || desired.is_some() {
            self.version += 1;
        }
        if let Some(tags) = tags {
            self.tags = tags;
        }
        let Some(desired) = desired else { return Ok(None) };
        self.desired.version += 1;
        let stamp = Stamp { time: time::format(now), version: Some(self.desired.version) };
        merge_stamped(&mut self.desired.properties, &mut self.desired.metadata, desired, &stamp);
        Ok(Some(DesiredNotice { version: self.desired.version, properties: desired.clone() }))
    }

    /// Replace the parts that `patch` names. The notice carries the whole new section with a `null` for each key that went,
    /// so that a device which merges ends up with the same.
    pub fn replace(&mut self, patch: &TwinPatch, now: DateTime<Utc>) -> Result<Option<DesiredNotice>, HubError> {
        let with_nulls = |old: &Map<String, Value>, new: &Map<String, Value>| {
            let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
            gone.chain(new.iter().map(|(key, value)| (key.clone(), value.clone()))).collect::<Map<_, _>>()
        };
        for (part, new) in [(Part::Tags, &patch.tags), (Part::Desired, &patch.desired)] {
            if let Some(new) = new {
                merged(part, &Map::new(), new)?;
            }
        }
        let mut next = self.clone();
        let notice = next.patch(
            &TwinPatch {
                tags: patch.tags.as_ref().map(|new| with_nulls(&self.tags, new)),
                desired: patch.desired.as_ref().map(|new| with_nulls(&self.desired.properties, new)),
            },
            now,
        );
        // The merge above leaves old members inside of objects that stay; a replacement must not.
        if let Some(new) = &patch.tags {
            next.tags = merged(Part::Tags, &Map::new(), new)?;
        }
        if let Some(new) = patch.desired.as_ref().filter(|_| matches!(notice, Ok(Some(_)))) {
            let mut section = Section::new(now);
            let stamp = Stamp { time: time::format(now), version: Some(next.desired.version) };
            merge_stamped(&mut section.properties, &mut section.metadata, new, &stamp);
            section.version = next.desired.version;
            next.desired = section;
        }
        let notice = notice?;
        *self = next;
        Ok(notice)
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
        self.reported.version += 1;
        let stamp = Stamp { time: time::format(now), version: None };
        merge_stamped(&mut self.reported.properties, &mut self.reported.metadata, patch, &stamp);
        Ok(self.reported.version)
    }

    /// The twin as a device gets it over MQTT: no tags, no metadata, no `properties` around it.
    pub fn device_json(&self) -> Value {
        json!({"desired": self.desired.versioned(), "reported": self.reported.versioned()})
    }

    /// The twin as a back end gets it.
    pub fn to_json(&self, facts: &TwinFacts) -> Value {
        let when = |time: Option<DateTime<Utc>>| time.map_or_else(|| time::NEVER.to_owned(), time::format);
        json!({
            "deviceId": facts.device_id,
            "etag": self.etag(),
            "deviceEtag": facts.device_etag,
            "status": if facts.enabled { "enabled" } else { "disabled" },
            "statusReason": facts.status_reason,
            "statusUpdateTime": when(facts.status_updated),
            "connectionState": if facts.connected { "Connected" } else { "Disconnected" },
            "lastActivityTime": when(facts.last_activity),
            "cloudToDeviceMessageCount": 0,
            "authenticationType": "sas",
            "x509Thumbprint": {"primaryThumbprint": null, "secondaryThumbprint": null},
            "modelId": "",
            "version": self.version,
            "tags": self.tags,
            "properties": {"desired": self.desired.to_json(), "reported": self.reported.to_json()},
            "capabilities": {"iotEdge": false},
        })
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
    /// Read the body of `PATCH` or `PUT /twins/{id}`; members other than tags and desired properties are ignored, as the
    /// SDKs' samples send more.
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

fn object_at<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = parent.entry(key).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("an object was just put there")
}

struct Stamp {
    time: String,
    version: Option<u64>,
}

impl Stamp {
    fn put(&self, metadata: &mut Map<String, Value>) {
        metadata.insert("$lastUpdated".into(), json!(self.time));
        if let Some(version) = self.version {
            metadata.insert("$lastUpdatedVersion".into(), json!(version));
        }
    }
}

/// [`merge`], and the same changes to the metadata beside it. Entries of deleted keys go; each parent's stamp moves.
fn merge_stamped(
    target: &mut Map<String, Value>,
    metadata: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    stamp: &Stamp,
) {
    stamp.put(metadata);
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
                metadata.remove(key);
            }
            Value::Object(inner) => {
                if !target.get(key).is_some_and(Value::is_object) {
                    metadata.insert(key.clone(), Value::Object(Map::new()));
                }
                merge_stamped(object_at(target, key), object_at(metadata, key), inner, stamp);
            }
            other => {
                let mut leaf = Map::new();
                stamp.put(&mut leaf);
                target.insert(key.clone(), other.clone());
                metadata.insert(key.clone(), Value::Object(leaf));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    fn desired(value: Value) -> TwinPatch {
        TwinPatch { tags: None, desired: Some(object(value)) }
    }

    #[test]
    fn a_patch_counts_stamps_and_makes_a_notice() {
        let now = DateTime::UNIX_EPOCH;
        let mut twin = Twin::new(now);
        assert_eq!(twin.device_json(), json!({"desired": {"$version": 1}, "reported": {"$version": 1}}));
        let notice = twin.patch(&desired(json!({"building": "43", "cfg": {"f": 1}})), now).expect("fits");
        let notice = notice.expect("a notice");
        assert_eq!(notice.to_json(), json!({"building": "43", "cfg": {"f": 1}, "$version": 2}));
        assert_eq!(DesiredNotice::from_json(notice.to_json().to_string().as_bytes()), Some(notice));
        twin.patch(&desired(json!({"cfg": {"f": null}, "building": null})), now).expect("fits");
        assert_eq!(Value::Object(twin.desired.properties.clone()), json!({"cfg": {}}));
        assert_eq!(twin.desired.metadata["cfg"]["$lastUpdatedVersion"], 3);
        assert!(!twin.desired.metadata.contains_key("building"));
        assert_eq!((twin.desired.version, twin.version, twin.etag()), (3, 3, "AAAAAAAAAAM=".to_owned()));
    }

    #[test]
    fn a_replacement_leaves_nothing_of_the_old_and_tells_what_went() {
        let now = DateTime::UNIX_EPOCH;
        let mut twin = Twin::new(now);
        twin.patch(&desired(json!({"a": 1, "o": {"x": 1}})), now).expect("fits");
        let notice = twin.replace(&desired(json!({"o": {"y": 2}})), now).expect("fits").expect("a notice");
        assert_eq!(Value::Object(twin.desired.properties.clone()), json!({"o": {"y": 2}}));
        assert_eq!(notice.properties["a"], Value::Null);
        assert_eq!(twin.desired.version, 3);
    }

    #[test]
    fn what_breaks_a_limit_changes_nothing() {
        let now = DateTime::UNIX_EPOCH;
        let deep = (0..12).fold(json!(1), |inner, _| json!({"a": inner}));
        for wrong in [
            json!({"a.b": 1}),
            json!({"$a": 1}),
            json!({"a b": 1}),
            json!({"a": "x".repeat(4097)}),
            json!({"a": 4_503_599_627_370_496_i64}),
            json!({"a": u64::MAX}),
            deep,
            Value::Object((0..9).map(|i| (format!("k{i}"), json!("x".repeat(4096)))).collect()),
        ] {
            let mut twin = Twin::new(now);
            let error = twin.patch(&desired(wrong.clone()), now).expect_err("refused");
            assert_eq!((error.code, twin), (ErrorCode::ArgumentInvalid, Twin::new(now)));
            assert!(Twin::new(now).report(&object(wrong), None, now).is_err());
        }
    }

    #[test]
    fn a_report_can_insist_on_a_version() {
        let now = DateTime::UNIX_EPOCH;
        let mut twin = Twin::new(now);
        assert_eq!(twin.report(&object(json!({"a": 1})), Some(1), now), Ok(2));
        let error = twin.report(&object(json!({"a": 2})), Some(1), now).expect_err("stale");
        assert_eq!(error.code, ErrorCode::PreconditionFailed);
        assert_eq!(twin.version, 1, "a report leaves the etag alone");
    }

    #[test]
    fn if_match_in_every_spelling() {
        for (header, allowed) in [
            (None, true),
            (Some("*"), true),
            (Some("\"*\""), true),
            (Some("AAAAAAAAAAE="), true),
            (Some("\"AAAAAAAAAAE=\""), true),
            (Some("\"AAAAAAAAAAI=\""), false),
        ] {
            assert_eq!(Twin::new(DateTime::UNIX_EPOCH).matches(header), allowed, "{header:?}");
        }
    }

    fn any_object() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..9i64).prop_map(Value::from)];
        let value = leaf.prop_recursive(3, 24, 4, |inner| {
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        prop::collection::btree_map("[a-d]", value, 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn merging_the_difference_leads_from_old_to_new(old in any_object(), new in any_object()) {
            let mut reached = old.clone();
            merge(&mut reached, &diff(&old, &new));
            prop_assert_eq!(reached, new);
        }

        #[test]
        fn metadata_mirrors_what_is_there(old in any_object(), new in any_object()) {
            let now = DateTime::UNIX_EPOCH;
            let mut twin = Twin::new(now);
            twin.report(&old, None, now).expect("small");
            twin.report(&diff(&old, &new), None, now).expect("small");
            prop_assert_eq!(&twin.reported.properties, &new);
            prop_assert!(mirrors(&twin.reported.properties, &twin.reported.metadata));
        }
    }

    fn mirrors(properties: &Map<String, Value>, metadata: &Map<String, Value>) -> bool {
        let keys = metadata.keys().filter(|key| !key.starts_with('$')).count();
        keys == properties.len()
            && properties.iter().all(|(key, value)| match (value, metadata.get(key)) {
                (Value::Object(inner), Some(Value::Object(meta))) => mirrors(inner, meta),
                (_, Some(Value::Object(meta))) => meta.contains_key("$lastUpdated"),
                _ => false,
            })
    }
}
