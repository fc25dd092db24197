//! `latch events`.

use std::future::pending;
use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, TimeDelta, Utc};
use clap::ValueEnum as _;
use iothub_protocol::time;
use serde_json::{Map, Value};

use crate::admin_client::AdminClient;
use crate::args::EventsArgs;
use crate::context::Context;
use crate::exit::{EndedBadly, Unreachable};
use crate::output::{cell, line, name, say};
use crate::signals;
use crate::units::{duration_argument, shown_duration};

/// How often to look for a hub that has gone.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn run(args: EventsArgs, context: &Context) -> anyhow::Result<()> {
    let now = Utc::now();
    let since = args.since.as_deref().map(|text| moment(text, now)).transpose()?;
    let mut reader = Reader {
        admin: context.admin(),
        json: context.json,
        filter: filter(&args),
        since,
        began: now,
        last: None,
        seen: 0,
        wanted: args.count,
    };
    if !(args.follow || args.count.is_some() || args.timeout.is_some()) {
        return reader.read_kept().await;
    }
    let stop = signals::stop()?;
    let time_is_up = async {
        match args.timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => pending().await,
        }
    };
    tokio::select! {
        followed = reader.follow() => return followed,
        () = stop => return Ok(()),
        () = time_is_up => {}
    }
    match (args.count, args.timeout) {
        (Some(wanted), Some(limit)) => {
            let seen = reader.seen;
            bail!(EndedBadly(format!("saw {seen} of {wanted} events in {}", shown_duration(limit))))
        }
        _ => Ok(()),
    }
}

/// A time as it is written, or so long before now.
fn moment(text: &str, now: DateTime<Utc>) -> anyhow::Result<DateTime<Utc>> {
    let ago = duration_argument(text).ok().and_then(|ago| TimeDelta::from_std(ago).ok());
    match time::parse(text).or_else(|| now.checked_sub_signed(ago?)) {
        Some(time) => Ok(time),
        None => bail!(
            "--since {text:?} is neither a time with a zone, such as 2026-12-24T18:00:00Z, nor a duration, such as 10m"
        ),
    }
}

fn filter(args: &EventsArgs) -> String {
    let mut filter = String::new();
    if let Some(device) = &args.device {
        filter.push_str(&format!("&device={}", encoded(device)));
    }
    let kinds: Vec<String> =
        args.kind.iter().filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned())).collect();
    if !kinds.is_empty() {
        filter.push_str(&format!("&kind={}", kinds.join(",")));
    }
    filter
}

/// A text as a part of a path or query.
pub(super) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

struct Reader {
    admin: AdminClient,
    json: bool,
    filter: String,
    since: Option<DateTime<Utc>>,
    began: DateTime<Utc>,
    /// The id of the latest event.
    last: Option<String>,
    seen: u64,
    wanted: Option<u64>,
}

impl Reader {
    async fn read_kept(&mut self) -> anyhow::Result<()> {
        let mut lines = self.admin.stream(&self.path(false)).await?;
        while let Some(text) = lines.next().await? {
            self.show(&text)?;
        }
        Ok(())
    }

    /// Until enough is seen. A hub that goes is waited for; one that is not there at first is an error.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let mut connected = self.admin.stream(&self.path(true)).await?;
        loop {
            loop {
                match connected.next().await {
                    Ok(Some(text)) if self.show(&text)? => return Ok(()),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) if error.is::<Unreachable>() => break,
                    Err(error) => return Err(error),
                }
            }
            say("the hub has gone; waiting until it is back");
            // What it says from its start on is new.
            self.since = self.since.or(Some(self.began));
            connected = loop {
                tokio::time::sleep(LOOK_PAUSE).await;
                match self.admin.stream(&self.path(true)).await {
                    Ok(lines) => break lines,
                    Err(error) if error.is::<Unreachable>() => {}
                    Err(error) => return Err(error),
                }
            };
            say("the hub is back; events from before its start that were not read are gone");
        }
    }

    fn path(&self, follow: bool) -> String {
        let since = self.since.map(|since| format!("&since={}", encoded(&time::format(since)))).unwrap_or_default();
        let after = self.last.as_ref().map(|id| format!("&after={}", encoded(id))).unwrap_or_default();
        format!("/events?follow={follow}{}{since}{after}", self.filter)
    }

    /// Print a line; whether that is enough.
    fn show(&mut self, text: &str) -> anyhow::Result<bool> {
        let event: Value = serde_json::from_str(text).unwrap_or_default();
        let is_gap = event["kind"] == "gap";
        match (self.json, is_gap) {
            (true, _) => line(text)?,
            (false, true) => say(&gap(&event)),
            (false, false) => line(&for_people(&event))?,
        }
        if is_gap {
            return Ok(false);
        }
        self.last = event["id"].as_str().map(str::to_owned).or(self.last.take());
        self.seen += 1;
        Ok(self.wanted.is_some_and(|wanted| self.seen >= wanted))
    }
}

fn gap(event: &Value) -> String {
    let reason = cell(&event["reason"]);
    match event["count"].as_u64() {
        Some(count) => format!("missed {count} events: {reason}"),
        None => format!("missed events: {reason}"),
    }
}

/// `2026-11-24T12:00:00.000Z door-0001 telemetry {"locked":true}`.
fn for_people(event: &Value) -> String {
    let kind = cell(&event["kind"]);
    let body = &event["body"];
    let detail = match kind.as_str() {
        "telemetry" if !event["bodyBase64"].is_null() => format!("base64 {}", cell(&event["bodyBase64"])),
        "telemetry" => printable(body),
        "reported" => section("", &body["properties"]["reported"]),
        "updated" | "replaced" => {
            let tags = body.get("tags").map(|tags| format!("tags {tags} ")).unwrap_or_default();
            tags + &section("desired ", &body["properties"]["desired"])
        }
        "queued" => cell(&event["messageId"]),
        "settled" => format!("{} {}", cell(&event["messageId"]), cell(&event["statusCode"])),
        _ => String::new(),
    };
    format!("{} {} {kind} {detail}", cell(&event["time"]), name(event)).trim_end().to_owned()
}

/// A section of a twin without what the hub keeps beside it.
fn section(name: &str, section: &Value) -> String {
    let Some(members) = section.as_object() else { return String::new() };
    let own: Map<String, Value> =
        members.iter().filter(|(key, _)| !key.starts_with('$')).map(|(k, v)| (k.clone(), v.clone())).collect();
    format!("{name}version {} {}", section["$version"], Value::Object(own))
}

/// A body in one line. Text of a device that would move a terminal's cursor is quoted.
fn printable(body: &Value) -> String {
    match body.as_str() {
        Some(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => body.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_has_its_line() {
        let event = |kind: &str, more: Value| {
            let mut event = json!({"time": "T", "deviceId": "d1", "kind": kind});
            event.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
            for_people(&event)
        };
        let reported = json!({"door": {"locked": true}, "$metadata": {"$lastUpdated": "T"}, "$version": 2});
        let desired = json!({"floor": 3, "$metadata": {}, "$version": 4});
        for (kind, more, expected) in [
            ("telemetry", json!({"body": {"a": 1}}), r#"T d1 telemetry {"a":1}"#),
            ("telemetry", json!({"body": "hello"}), "T d1 telemetry hello"),
            ("telemetry", json!({"body": "\u{1b}[2J"}), r#"T d1 telemetry "\u001b[2J""#),
            ("telemetry", json!({"body": null}), "T d1 telemetry null"),
            ("telemetry", json!({"bodyBase64": "/w=="}), "T d1 telemetry base64 /w=="),
            (
                "reported",
                json!({"body": {"properties": {"reported": reported}}}),
                r#"T d1 reported version 2 {"door":{"locked":true}}"#,
            ),
            (
                "updated",
                json!({"body": {"tags": {"site": "A"}, "properties": {"desired": desired}}}),
                r#"T d1 updated tags {"site":"A"} desired version 4 {"floor":3}"#,
            ),
            ("updated", json!({"body": {"tags": {"site": null}}}), r#"T d1 updated tags {"site":null}"#),
            ("created", json!({"body": {}}), "T d1 created"),
            ("connected", json!({"moduleId": "m1"}), "T d1/m1 connected"),
            ("settled", json!({"messageId": "m", "statusCode": "Purged"}), "T d1 settled m Purged"),
        ] {
            assert_eq!(event(kind, more), expected);
        }
    }

    #[test]
    fn since_is_a_time_or_so_long_ago() {
        let now = time::parse("2026-11-24T12:00:00Z").expect("a time");
        for (text, expected) in [
            ("2026-12-24T18:00:00Z", Some("2026-12-24T18:00:00.000Z")),
            ("2026-12-24T18:00:00+02:00", Some("2026-12-24T16:00:00.000Z")),
            ("10m", Some("2026-11-24T11:50:00.000Z")),
            ("1d", Some("2026-11-23T12:00:00.000Z")),
            ("2026-12-24", None),
            ("999999999999d", None),
            ("soon", None),
        ] {
            assert_eq!(moment(text, now).ok().map(time::format).as_deref(), expected, "{text}");
        }
    }
}
