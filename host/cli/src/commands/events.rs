//! `latch events`.

use clap::ValueEnum as _;
use serde_json::Value;

use crate::args::EventsArgs;
use crate::context::Context;
use crate::output::{cell, line, say};

pub(super) async fn run(args: EventsArgs, context: &Context) -> anyhow::Result<()> {
    let mut path = format!("/events?follow={}", args.follow);
    if let Some(device) = &args.device {
        path.push_str(&format!("&device={}", encoded(device.as_str())));
    }
    let kinds: Vec<String> =
        args.kind.iter().filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned())).collect();
    if !kinds.is_empty() {
        path.push_str(&format!("&kind={}", kinds.join(",")));
    }
    let json = context.json;
    context.admin().lines(&path, |text| if json { line(text) } else { line(&for_people(text)) }).await?;
    if args.follow {
        say("the hub has stopped");
    }
    Ok(())
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

/// `2026-11-24T12:00:00.000Z door-0001 telemetry {"locked":true}`.
fn for_people(text: &str) -> String {
    let Ok(event) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    let kind = cell(&event["kind"]);
    let detail = match kind.as_str() {
        "missed" => return format!("({} events were not kept)", cell(&event["count"])),
        "telemetry" if event["body"].is_null() => format!("base64 {}", cell(&event["bodyBase64"])),
        "telemetry" => cell(&event["body"]),
        "queued" => cell(&event["messageId"]),
        "settled" => format!("{} {}", cell(&event["messageId"]), cell(&event["statusCode"])),
        "reported" => format!("version {} {}", event["version"], event["patch"]),
        _ => String::new(),
    };
    format!("{} {} {kind} {detail}", cell(&event["time"]), cell(&event["deviceId"])).trim_end().to_owned()
}
