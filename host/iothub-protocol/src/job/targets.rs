//! Which devices a job is for, beyond its condition: a list, those that are left out, those that come later.

use ring::digest::{Context, SHA256};
use serde_json::{Map, Value, json};

use super::extension::{invalid, object};
use crate::address::Address;
use crate::error::HubError;
use crate::query::{Condition, Source};

/// Most devices that a job's own request lists, of each kind. A longer list is uploaded.
pub const MAX_INLINE: usize = 1000;
/// Most devices of an upload, those to leave out included.
pub const MAX_LISTED: u64 = 1_000_000;

/// `latch.targets`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JobTargets {
    /// The devices, instead of those that match the condition.
    pub list: Option<List>,
    pub exclude: Option<Exclusion>,
    /// Devices that come to match the condition while the job runs are in it, too, and it runs until its time is over.
    pub continuous: bool,
}

/// A list of devices and modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    /// At most [`MAX_INLINE`], each once.
    Inline(Vec<Address>),
    /// It comes by itself, after the job.
    Uploaded,
}

/// Who is left out. A device that is listed goes with its modules.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exclusion {
    /// As a job's condition, and over the same rows.
    pub condition: Option<String>,
    pub list: Option<List>,
}

impl JobTargets {
    /// Read the targets of a job with that condition. With `any_length`, a list may be as long as its body.
    ///
    /// # Errors
    /// 400004, naming the place and what is allowed there.
    pub(super) fn from_json(targets: &Value, condition: &str, any_length: bool) -> Result<JobTargets, HubError> {
        const AT: &str = "latch.targets";
        let fields = object(targets, AT, &["devices", "list", "exclude", "continuous"])?;
        let list = list(fields, AT, any_length)?;
        let continuous = match fields.get("continuous").filter(|value| !value.is_null()) {
            None => false,
            Some(given) => given.as_bool().ok_or_else(|| invalid(format!("{AT}.continuous must be true or false")))?,
        };
        if continuous && list.is_some() {
            let text = "latch.targets.continuous is for a job over a condition: nothing comes to match a list";
            return Err(invalid(text.into()));
        }
        if list.is_some() && condition != "*" {
            let text = "queryCondition must be \"*\" in a job over a list: the list says which devices";
            return Err(invalid(text.into()));
        }
        let exclude = match fields.get("exclude").filter(|value| !value.is_null()) {
            None => None,
            Some(exclude) => Some(Exclusion::from_json(exclude, any_length)?),
        };
        let targets = JobTargets { list, exclude, continuous };
        if targets.list.is_none()
            && let Some(excluded) = targets.exclude.as_ref().and_then(|exclude| exclude.condition.as_deref())
        {
            same_source(&format!("{AT}.exclude.condition"), excluded, condition)?;
        }
        Ok(targets)
    }

    pub(super) fn to_json(&self) -> Value {
        let mut fields = Map::new();
        write_list(self.list.as_ref(), &mut fields);
        if let Some(Exclusion { condition, list }) = &self.exclude {
            let mut exclude = Map::new();
            if let Some(condition) = condition {
                exclude.insert("condition".into(), json!(condition));
            }
            write_list(list.as_ref(), &mut exclude);
            fields.insert("exclude".into(), Value::Object(exclude));
        }
        if self.continuous {
            fields.insert("continuous".into(), json!(true));
        }
        Value::Object(fields)
    }

    /// Whether a list comes by itself, so that the job cannot begin without it.
    pub fn is_uploaded(&self) -> bool {
        let excluded = self.exclude.as_ref().and_then(|exclude| exclude.list.as_ref());
        [self.list.as_ref(), excluded].contains(&Some(&List::Uploaded))
    }
}

impl Exclusion {
    fn from_json(exclude: &Value, any_length: bool) -> Result<Exclusion, HubError> {
        const AT: &str = "latch.targets.exclude";
        let fields = object(exclude, AT, &["condition", "devices", "list"])?;
        let condition = match fields.get("condition").filter(|value| !value.is_null()) {
            None => None,
            Some(Value::String(text)) => {
                let at = format!("{AT}.condition");
                if parse_condition(&at, text)?.is_all() {
                    return Err(invalid(format!("{at} holds for every device: nothing would be left of the job")));
                }
                Some(text.clone())
            }
            Some(_) => return Err(invalid(format!("{AT}.condition must be a string"))),
        };
        let list = list(fields, AT, any_length)?;
        if condition.is_none() && list.is_none() {
            return Err(invalid(format!("{AT} must have condition, devices or list")));
        }
        Ok(Exclusion { condition, list })
    }
}

/// A condition at a place in the request; unlike that of the job itself, it is looked at when the job is made.
///
/// # Errors
/// 400004, with the place.
pub(super) fn parse_condition(at: &str, text: &str) -> Result<Condition, HubError> {
    Condition::parse_job(text).map_err(|error| invalid(format!("{at}: {error}")))
}

/// Whether a condition is of the same rows as the job's own. One of the job's that cannot be read is told of when the job begins.
///
/// # Errors
/// 400004, with the place.
pub(super) fn same_source(at: &str, text: &str, job: &str) -> Result<(), HubError> {
    let Ok(job) = Condition::parse_job(job) else { return Ok(()) };
    match (parse_condition(at, text)?.source(), job.source()) {
        (one, other) if one == other => Ok(()),
        (_, Source::Modules) => Err(invalid(format!("{at} must be FROM devices.modules, as queryCondition is"))),
        (_, _) => Err(invalid(format!("{at} must be of devices, as queryCondition is"))),
    }
}

fn list(fields: &Map<String, Value>, at: &str, any_length: bool) -> Result<Option<List>, HubError> {
    let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
    match (given("devices"), given("list")) {
        (None, None) => Ok(None),
        (Some(devices), None) => {
            let devices = addresses(devices, &format!("{at}.devices"))?;
            match devices.len() {
                0 => Err(invalid(format!("{at}.devices is empty"))),
                count if count > MAX_INLINE && !any_length => Err(invalid(format!(
                    "{at}.devices has {count} devices, and at most {MAX_INLINE} go in the job itself: say \"list\": \
                     \"upload\" and send them after it"
                ))),
                _ => Ok(Some(List::Inline(devices))),
            }
        }
        (None, Some(list)) if list == "upload" => Ok(Some(List::Uploaded)),
        (None, Some(_)) => Err(invalid(format!("{at}.list must be \"upload\""))),
        (Some(_), Some(_)) => Err(invalid(format!("{at} has devices and list: choose one"))),
    }
}

/// Devices and modules, each once: `["a", "b/m"]`.
///
/// # Errors
/// 400004, with the place and the first entry that is wrong.
pub fn addresses(list: &Value, at: &str) -> Result<Vec<Address>, HubError> {
    let list = list.as_array().ok_or_else(|| invalid(format!("{at} must be an array of ids")))?;
    let mut seen = std::collections::HashSet::with_capacity(list.len());
    let read = |(number, id): (usize, &Value)| {
        let at = || format!("{at}[{number}]");
        let text = id.as_str().ok_or_else(|| invalid(format!("{} is no text", at())))?;
        let address = Address::parse(text).map_err(|error| invalid(format!("{}: {error}", at())))?;
        match seen.insert(address.clone()) {
            true => Ok(address),
            false => Err(invalid(format!("{}: {address} is there twice", at()))),
        }
    };
    list.iter().enumerate().map(read).collect()
}

fn write_list(list: Option<&List>, fields: &mut Map<String, Value>) {
    match list {
        None => None,
        Some(List::Inline(devices)) => fields.insert("devices".into(), json!(texts(devices))),
        Some(List::Uploaded) => fields.insert("list".into(), json!("upload")),
    };
}

fn texts(devices: &[Address]) -> Vec<String> {
    devices.iter().map(Address::to_string).collect()
}

/// Some of an uploaded list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListPart {
    pub devices: Vec<Address>,
    pub excluded: Vec<Address>,
}

impl ListPart {
    /// Read the body of `POST /jobs/v2/{jobId}/targets`.
    ///
    /// # Errors
    /// 400004, with the place of the first mistake.
    pub fn from_json(body: &Value) -> Result<ListPart, HubError> {
        let fields = object(body, "the body", &["devices", "exclude"])?;
        let part = |name: &str| fields.get(name).map_or(Ok(Vec::new()), |list| addresses(list, name));
        Ok(ListPart { devices: part("devices")?, excluded: part("exclude")? })
    }

    pub fn to_json(&self) -> Value {
        json!({"devices": texts(&self.devices), "exclude": texts(&self.excluded)})
    }
}

/// What a whole list must come to: the body of `POST /jobs/v2/{jobId}/targets/complete`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListSeal {
    /// Devices, those to leave out included.
    pub count: u64,
    /// As [`ListDigest`] makes it.
    pub sha256: String,
}

impl ListSeal {
    /// # Errors
    /// 400004 if it is none.
    pub fn from_json(body: &Value) -> Result<ListSeal, HubError> {
        let fields = object(body, "the body", &["count", "sha256"])?;
        let count = fields.get("count").and_then(Value::as_u64);
        let count = count.ok_or_else(|| invalid("count must say how many devices were sent".into()))?;
        let is_hash = |text: &&str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let sha256 = fields.get("sha256").and_then(Value::as_str).filter(is_hash);
        let sha256 = sha256.ok_or_else(|| invalid("sha256 must be 64 hexadecimal digits".into()))?;
        Ok(ListSeal { count, sha256: sha256.to_ascii_lowercase() })
    }

    pub fn to_json(&self) -> Value {
        json!({"count": self.count, "sha256": self.sha256})
    }
}

/// The SHA-256 of a list: of its ids as lines, in order of their bytes and each once; then of those to leave out, with a
/// minus before each.
pub struct ListDigest {
    context: Context,
    count: u64,
}

impl ListDigest {
    #[expect(clippy::new_without_default, reason = "the seal of nothing is nobody's default")]
    pub fn new() -> ListDigest {
        ListDigest { context: Context::new(&SHA256), count: 0 }
    }

    pub fn push(&mut self, id: &str, is_excluded: bool) {
        if is_excluded {
            self.context.update(b"-");
        }
        self.context.update(id.as_bytes());
        self.context.update(b"\n");
        self.count += 1;
    }

    pub fn finish(self) -> ListSeal {
        let digest = self.context.finish();
        let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        ListSeal { count: self.count, sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).expect(text)
    }

    #[test]
    fn targets_are_read_and_written_back() {
        for (targets, is_uploaded) in [
            (json!({"devices": ["a", "b/m"]}), false),
            (json!({"list": "upload"}), true),
            (json!({"exclude": {"condition": "tags.pilot = true", "devices": ["c"]}}), false),
            (json!({"devices": ["a"], "exclude": {"list": "upload"}}), true),
            (json!({"devices": ["a"], "exclude": {"condition": "FROM devices.modules WHERE tags.x = 1"}}), false),
            (json!({"continuous": true}), false),
        ] {
            let read = JobTargets::from_json(&targets, "*", false).expect("targets");
            assert_eq!((read.to_json(), read.is_uploaded()), (targets, is_uploaded));
        }
        let modules = json!({"exclude": {"condition": "FROM devices.modules WHERE tags.x = 1"}});
        assert!(JobTargets::from_json(&modules, "FROM devices.modules", false).is_ok());
        let many: Vec<_> = (0..=MAX_INLINE).map(|number| format!("d{number}")).collect();
        assert!(JobTargets::from_json(&json!({"devices": many}), "*", true).is_ok());
        let refused = JobTargets::from_json(&json!({"devices": many}), "*", false).expect_err("too many");
        assert!(refused.message.contains("at most 1000"), "{refused}");
    }

    #[test]
    fn what_is_not_possible_is_refused_with_its_place() {
        for (targets, condition, text) in [
            (json!([]), "*", "latch.targets must be an object"),
            (json!({"ids": []}), "*", "no field \"ids\""),
            (json!({"devices": "a"}), "*", "latch.targets.devices must be an array"),
            (json!({"devices": []}), "*", "latch.targets.devices is empty"),
            (json!({"devices": ["a", "b b"]}), "*", "latch.targets.devices[1]: a device id contains ' '"),
            (json!({"devices": ["a", "b", "a"]}), "*", "latch.targets.devices[2]: a is there twice"),
            (json!({"devices": [1]}), "*", "latch.targets.devices[0] is no text"),
            (json!({"devices": ["a"]}), "tags.x = 1", "queryCondition must be \"*\""),
            (json!({"list": "later"}), "*", "must be \"upload\""),
            (json!({"continuous": 1}), "*", "latch.targets.continuous must be true or false"),
            (json!({"continuous": true, "list": "upload"}), "*", "nothing comes to match a list"),
            (json!({"list": "upload", "devices": ["a"]}), "*", "choose one"),
            (json!({"exclude": {}}), "*", "latch.targets.exclude must have"),
            (json!({"exclude": {"condition": 1}}), "*", "must be a string"),
            (json!({"exclude": {"condition": "*"}}), "*", "nothing would be left"),
            (
                json!({"exclude": {"condition": "tags."}}),
                "*",
                "latch.targets.exclude.condition: SQL query parse failed",
            ),
            (json!({"exclude": {"condition": "tags.x = 1"}}), "FROM devices.modules", "must be FROM devices.modules"),
            (json!({"exclude": {"condition": "FROM devices.modules"}}), "tags.x = 1", "nothing would be left"),
        ] {
            let refused = JobTargets::from_json(&targets, condition, false).expect_err(text);
            assert!(refused.message.contains(text), "{targets}: {refused}");
        }
    }

    #[test]
    fn a_part_of_a_list_and_its_seal_are_read() {
        let part = ListPart { devices: vec![address("a"), address("b/m")], excluded: vec![address("c")] };
        assert_eq!(ListPart::from_json(&part.to_json()), Ok(part));
        assert_eq!(ListPart::from_json(&json!({})), Ok(ListPart::default()));
        assert!(ListPart::from_json(&json!({"devices": ["a", ""]})).is_err());
        let mut digest = ListDigest::new();
        digest.push("a", false);
        digest.push("c", true);
        let seal = digest.finish();
        // printf 'a\n-c\n' | sha256sum
        assert_eq!(seal.sha256, "6cb6a77ff3275b3269ff8d32f0509a2c8ad5946274ff487fd3e21e548040dd2e");
        assert_eq!(ListSeal::from_json(&seal.to_json()), Ok(seal));
        for wrong in [json!({}), json!({"count": 1, "sha256": "0"}), json!({"count": -1, "sha256": "0".repeat(64)})] {
            assert!(ListSeal::from_json(&wrong).is_err(), "{wrong}");
        }
    }
}
