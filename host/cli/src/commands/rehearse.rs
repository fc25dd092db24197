//! `latch hub rehearse`.

use std::time::Duration;

use anyhow::bail;
use serde_json::{Map, Value, json};

use crate::args::{BadDayArgs, RehearseCommand};
use crate::context::Context;
use crate::output::{cell, document, line, say, table};
use crate::units::shown_duration;

/// What `slow-hub` has where only one end of its range is given.
const USUAL_DELAY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

pub(super) async fn run(command: RehearseCommand, context: &Context) -> anyhow::Result<()> {
    let (name, day, delay) = match command {
        RehearseCommand::List => return list(context).await,
        RehearseCommand::Stop { number } => return stop(number, context).await,
        RehearseCommand::SlowHub { day, min, max } => ("slow-hub", day, range(min, max)?),
        RehearseCommand::TokenCut(day) => ("token-cut", day, None),
        RehearseCommand::TakeOver(day) => ("take-over", day, None),
        RehearseCommand::LostPubacks(day) => ("lost-pubacks", day, None),
        RehearseCommand::HalfOpen(day) => ("half-open", day, None),
        RehearseCommand::LostNotices(day) => ("lost-notices", day, None),
        RehearseCommand::ReconnectStorm(day) => ("reconnect-storm", day, None),
        RehearseCommand::Silence(day) => ("silence", day, None),
    };
    begin(name, day, delay, context).await
}

/// One that was not given gives way to the other.
fn range(min: Option<Duration>, max: Option<Duration>) -> anyhow::Result<Option<(Duration, Duration)>> {
    let range = match (min, max) {
        (None, None) => return Ok(None),
        (Some(min), None) => (min, USUAL_DELAY.1.max(min)),
        (None, Some(max)) => (USUAL_DELAY.0.min(max), max),
        (Some(min), Some(max)) => (min, max),
    };
    if range.0 > range.1 {
        bail!("--min is longer than --max");
    }
    Ok(Some(range))
}

async fn begin(
    name: &str,
    day: BadDayArgs,
    delay: Option<(Duration, Duration)>,
    context: &Context,
) -> anyhow::Result<()> {
    let BadDayArgs { devices, percent, length, seed } = day;
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut body = Map::from_iter([("name".to_owned(), json!(name))]);
    let mut add = |member: &str, value: Option<Value>| body.extend(value.map(|value| (member.to_owned(), value)));
    add("devices", devices.map(|devices| json!(devices)));
    add("percent", percent.map(|percent| json!(percent)));
    add("lengthMilliseconds", length.map(|length| json!(milliseconds(length))));
    add("delayMilliseconds", delay.map(|(min, max)| json!([milliseconds(min), milliseconds(max)])));
    add("seed", seed.map(|seed| json!(seed)));
    let begun = context.admin().post("/rehearsals", &Value::Object(body)).await?;
    if context.json {
        return document(&begun);
    }
    line(&format!("{} {name} --seed {}", cell(&begun["number"]), cell(&begun["seed"])))
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let rehearsed = context.admin().get("/rehearsals").await?;
    if context.json {
        return document(&rehearsed);
    }
    if rehearsed["tier"].is_object() {
        say(&told(&rehearsed["tier"]));
    }
    let days = rehearsed["badDays"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = days.iter().map(row).collect();
    table(&["NUMBER", "NAME", "DEVICES", "PERCENT", "REMAINING", "COUNT", "SEED"], &rows)
}

fn row(day: &Value) -> Vec<String> {
    let remaining = Duration::from_secs(day["remainingSeconds"].as_u64().unwrap_or_default());
    let mut cells: Vec<_> = ["number", "name", "devices", "percent"].iter().map(|column| cell(&day[column])).collect();
    cells.extend([shown_duration(remaining), cell(&day["count"]), cell(&day["seed"])]);
    cells
}

/// `tier S1, 1 unit: 120 of 400000 messages today; refused: queries 4`.
fn told(tier: &Value) -> String {
    let units = if tier["units"] == 1 { "unit" } else { "units" };
    let mut text = format!(
        "tier {}, {} {units}: {} of {} messages today",
        cell(&tier["tier"]),
        cell(&tier["units"]),
        cell(&tier["messagesToday"]),
        cell(&tier["dailyQuota"])
    );
    for what in ["delayed", "refused"] {
        let counts: Vec<String> = match tier[what].as_object() {
            Some(counts) => counts.iter().map(|(class, count)| format!("{class} {count}")).collect(),
            None => vec![],
        };
        if !counts.is_empty() {
            text.push_str(&format!("; {what}: {}", counts.join(", ")));
        }
    }
    text
}

async fn stop(number: Option<u64>, context: &Context) -> anyhow::Result<()> {
    let Some(number) = number else {
        let stopped = context.admin().delete("/rehearsals").await?;
        if context.json {
            return document(&stopped);
        }
        let days = if stopped["stopped"] == 1 { "bad day" } else { "bad days" };
        return line(&format!("stopped {} {days}", cell(&stopped["stopped"])));
    };
    context.admin().delete(&format!("/rehearsals/{number}")).await?;
    if context.json { document(&json!({"stopped": 1})) } else { line("stopped 1 bad day") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_of_the_range_is_enough() {
        let ms = Duration::from_millis;
        for (min, max, expected) in [
            (None, None, None),
            (Some(100), None, Some((ms(100), ms(5000)))),
            (Some(9000), None, Some((ms(9000), ms(9000)))),
            (None, Some(100), Some((ms(100), ms(100)))),
            (Some(1), Some(2), Some((ms(1), ms(2)))),
        ] {
            assert_eq!(range(min.map(ms), max.map(ms)).expect("a range"), expected);
        }
        assert!(range(Some(ms(2)), Some(ms(1))).is_err());
    }

    #[test]
    fn a_tier_is_told_in_a_line() {
        let tier = json!({"tier": "S1", "units": 1, "messagesToday": 120, "dailyQuota": 400_000, "delayed": {},
            "refused": {"queries": 4}});
        assert_eq!(told(&tier), "tier S1, 1 unit: 120 of 400000 messages today; refused: queries 4");
    }
}
