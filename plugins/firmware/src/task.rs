//! What takes a device a while, step by step. No host in here, so `cargo test` runs it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A version is a name for people; longer is a mistake.
const LONGEST_VERSION: usize = 64;

/// One update or reboot and how far it has come. Travels in the payload of a timer, so a later
/// version of this plugin must be able to read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    kind: Kind,
    step: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Kind {
    Update { version: String },
    Reboot,
}

/// What a device is at while a task is at one step.
struct Step {
    status: &'static str,
    /// Per cent.
    progress: u8,
    /// How long it takes, in milliseconds. `None`: this is the end.
    takes: Option<u64>,
}

const UPDATE: &[Step] = &[
    Step { status: "downloading", progress: 0, takes: Some(1000) },
    Step { status: "downloading", progress: 50, takes: Some(1000) },
    Step { status: "applying", progress: 75, takes: Some(1000) },
    Step { status: "rebooting", progress: 90, takes: Some(1000) },
    Step { status: "done", progress: 100, takes: None },
];

const REBOOT: &[Step] = &[
    Step { status: "rebooting", progress: 0, takes: Some(1000) },
    Step { status: "done", progress: 100, takes: None },
];

impl Task {
    /// What a direct method asks for; if it makes no sense, why.
    pub(crate) fn asked(method: &str, payload: &str) -> Result<Task, String> {
        let kind = if method == "reboot" { Kind::Reboot } else { Kind::Update { version: version(payload)? } };
        Ok(Task { kind, step: 0 })
    }

    /// The same task one step on.
    pub(crate) fn next(self) -> Task {
        Task { step: self.step + 1, ..self }
    }

    /// When the next step begins, in milliseconds from the beginning of this one; none if this is the last.
    pub(crate) fn takes(&self) -> Option<u64> {
        self.at().takes
    }

    /// For the reported properties.
    pub(crate) fn report(&self) -> Value {
        let (name, mut report) = match &self.kind {
            Kind::Update { version } => ("firmware", Map::from_iter([("version".to_owned(), json!(version))])),
            Kind::Reboot => ("reboot", Map::new()),
        };
        report.insert("status".to_owned(), json!(self.at().status));
        report.insert("progress".to_owned(), json!(self.at().progress));
        json!({ name: report })
    }

    /// A step beyond the last is the last: what another version of this plugin began ends somewhere.
    fn at(&self) -> &'static Step {
        let steps = match self.kind {
            Kind::Update { .. } => UPDATE,
            Kind::Reboot => REBOOT,
        };
        &steps[self.step.min(steps.len() - 1)]
    }
}

fn version(payload: &str) -> Result<String, String> {
    let payload: Value = serde_json::from_str(payload).map_err(|error| format!("the payload is not JSON: {error}"))?;
    match payload.get("version").and_then(Value::as_str) {
        Some(version) if (1..=LONGEST_VERSION).contains(&version.chars().count()) => Ok(version.to_owned()),
        _ => Err(format!(r#"the payload must be {{"version": "..."}}, 1 to {LONGEST_VERSION} characters"#)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_goes_through_its_steps_and_ends() {
        let mut task = Task::asked("firmwareUpdate", r#"{"version": "2.1.0"}"#).expect("it makes sense");
        let mut seen = vec![task.report()["firmware"]["status"].clone()];
        while task.takes().is_some() {
            task = task.next();
            seen.push(task.report()["firmware"]["status"].clone());
        }
        assert_eq!(seen, ["downloading", "downloading", "applying", "rebooting", "done"]);
        let done = json!({ "firmware": { "version": "2.1.0", "status": "done", "progress": 100 } });
        assert_eq!(task.next().report(), done);
    }

    #[test]
    fn an_update_needs_a_version_and_a_reboot_nothing() {
        for payload in ["null", "{", "{}", r#"{"version": 2}"#, r#"{"version": ""}"#] {
            assert!(Task::asked("firmwareUpdate", payload).is_err(), "{payload}");
        }
        let task = Task::asked("reboot", "null").expect("it makes sense");
        assert_eq!(task.report(), json!({ "reboot": { "status": "rebooting", "progress": 0 } }));
    }
}
