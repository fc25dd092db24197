//! What is to be said of a job, in words.

use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};
use iothub_protocol::time;
use serde_json::Value;

use super::pace::Pace;
use crate::units::shown_duration;

/// Characters of a bar, at least and at most.
const BAR: (usize, usize) = (10, 50);

pub(super) fn has_ended(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}

/// Devices that have ended, however, and all.
pub(super) fn done(job: &Value) -> (u64, u64) {
    let devices = count(job, "deviceCount");
    (devices.saturating_sub(count(job, "pendingCount") + count(job, "runningCount")), devices)
}

fn count(job: &Value, name: &str) -> u64 {
    job["deviceJobStatistics"][name].as_u64().unwrap_or(0)
}

/// `12 failed: 8 timeout, 4 offline`, or nothing; the classes with most first.
pub(crate) fn failures(job: &Value) -> String {
    let failed = count(job, "failedCount");
    if failed == 0 {
        return String::new();
    }
    let classes = job["latch"]["progress"]["failures"].as_object().into_iter().flatten();
    let mut classes: Vec<_> = classes.map(|(class, count)| (count.as_u64().unwrap_or(0), class)).collect();
    classes.sort_by(|one, other| other.cmp(one));
    let classes: Vec<_> = classes.iter().map(|(count, class)| format!("{count} {class}")).collect();
    match classes.is_empty() {
        true => format!("{failed} failed"),
        false => format!("{failed} failed: {}", classes.join(", ")),
    }
}

/// `waits for approval: stage 1 of 3 went well`.
pub(crate) fn paused(paused: &Value) -> String {
    let reason = match paused["reason"].as_str() {
        None | Some("") => String::new(),
        Some(reason) => format!(": {reason}"),
    };
    match paused["by"].as_str() {
        Some("approval") => format!("waits for approval{reason}"),
        Some("rule") => format!("paused by its policy{reason}"),
        _ => format!("paused{reason}"),
    }
}

/// `running`, or `running stage 1 of 3 (5%)`, or what the job waits for.
pub(super) fn state(job: &Value, now: DateTime<Utc>) -> String {
    let (status, progress) = (job["status"].as_str().unwrap_or("unknown"), &job["latch"]["progress"]);
    if !progress["paused"].is_null() {
        return paused(&progress["paused"]);
    }
    if let Some(listed) = progress["listed"].as_u64() {
        return format!("{status}: its list is being uploaded, {listed} devices so far");
    }
    if let Some(wait) = wait(job, now) {
        return format!("{status}: {wait}");
    }
    if let Some(then) = progress["ending"].as_str() {
        return format!("{status}: its end has come ({then})");
    }
    if let Some(window) = window(job, now) {
        return format!("{status}: {window}");
    }
    let until = continuous(&progress["continuousUntil"]).map(|until| format!(", {until}")).unwrap_or_default();
    let number = progress["stage"].as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0);
    match number.checked_sub(1).and_then(|place| job["latch"]["policy"]["stages"].get(place)) {
        Some(stage) => {
            let percent = stage["percent"].as_u64().map(|percent| format!("{percent}%"));
            let name = percent.or_else(|| stage["condition"].as_str().map(str::to_owned)).unwrap_or_default();
            format!("{status} stage {number} of {} ({name}){until}", progress["stages"])
        }
        None => format!("{status}{until}"),
    }
}

/// `waits for its window, which opens at 2026-12-24T18:00:00.000Z`, of a job that nothing is under way in.
fn window(job: &Value, now: DateTime<Utc>) -> Option<String> {
    let window = &job["latch"]["progress"]["window"];
    let time_of = |name: &str| window[name].as_str().and_then(time::parse);
    let is_past = |name: &str| time_of(name).is_some_and(|at| at <= now);
    // A hub tells of a job when it changes, which it need not have when a window closes.
    let is_closed = window["open"] == false || is_past("closesAt");
    if !is_closed || is_past("opensAt") || count(job, "runningCount") > 0 {
        return None;
    }
    Some(match window["opensAt"].as_str() {
        Some(opens) => format!("waits for its window, which opens at {opens}"),
        None => "waits for its window, which does not open again".to_owned(),
    })
}

/// `continuous until 2026-12-24T18:00:00Z`, of a job that devices can join.
pub(crate) fn continuous(until: &Value) -> Option<String> {
    // Nobody looks at a job by the millisecond.
    let until = until.as_str().and_then(time::parse)?.trunc_subsecs(0);
    Some(format!("continuous until {}", until.format("%FT%TZ")))
}

/// `begins in 2h 5m, at 2026-12-24T18:00:00.000Z`, of a job that waits for a time.
fn wait(job: &Value, now: DateTime<Utc>) -> Option<String> {
    if !matches!(job["status"].as_str(), Some("queued" | "scheduled")) {
        return None;
    }
    let next = job["latch"]["progress"]["next"][0].as_str();
    let text = next.or_else(|| job["startTime"].as_str())?;
    let left = (time::parse(text)? - now).to_std().ok().filter(|left| !left.is_zero())?;
    let begins = if next.is_some() { "its next job begins" } else { "begins" };
    Some(format!("{begins} in {}, at {text}", roughly(left)))
}

/// The rate and when it will be over, if that can be told: `118/s, eta 1m 5s`.
pub(super) fn rate(job: &Value, pace: &Pace) -> Option<String> {
    let (done, devices) = done(job);
    if done == devices {
        return None;
    }
    let rate = pace.rate()?;
    let mut text = if rate < 10.0 { format!("{rate:.1}/s") } else { format!("{rate:.0}/s") };
    if let Some(remaining) = pace.remaining(devices - done) {
        text.push_str(&format!(", eta {}", roughly(remaining)));
    }
    Some(text)
}

/// In whole seconds, and from an hour on in whole minutes.
fn roughly(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().ceil() as u64;
    let shown = if seconds >= 3600 { seconds / 60 * 60 } else { seconds };
    shown_duration(Duration::from_secs(shown))
}

/// What can be done about it: `latch job approve ring`.
pub(super) fn hint(id: &str, job: &Value) -> Option<String> {
    match job["latch"]["progress"]["paused"]["by"].as_str()? {
        "approval" => Some(format!("latch job approve {id}, or latch job report {id}")),
        _ => Some(format!("latch job resume {id}, or latch job report {id}")),
    }
}

/// `[=====>    ]  50%  500/1000 devices`, no wider than `width` if that can be.
pub(super) fn bar(job: &Value, width: usize) -> String {
    let (done, devices) = done(job);
    // What was done of so many parts; of no devices, none.
    let share = |parts: usize| (parts as u128 * u128::from(done)).checked_div(u128::from(devices)).unwrap_or(0);
    let percent = share(100);
    let counts = format!("{percent:>3}%  {done}/{devices} devices");
    let (least, most) = BAR;
    let length = width.saturating_sub(counts.len() + "[]  ".len()).clamp(least, most);
    let full = usize::try_from(share(length)).unwrap_or(length).min(length);
    let head = if full > 0 && full < length { ">" } else { "" };
    let body = format!("{}{head}", "=".repeat(full - head.len()));
    format!("[{body:<length$}]  {counts}")
}

/// Text from elsewhere that cannot move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    fn now() -> DateTime<Utc> {
        time::parse("2026-12-24T16:00:00Z").expect("a time")
    }

    #[test]
    fn the_stage_is_told_where_there_is_one() {
        let mut job = json!({"status": "running"});
        assert_eq!(state(&job, now()), "running");
        job["latch"] = json!({"policy": {"stages": []}, "progress": {"stage": 1, "stages": 1}});
        assert_eq!(state(&job, now()), "running");
        job["latch"] = json!({"policy": {"stages": [{"percent": 5}, {"percent": 100}]}});
        assert_eq!(state(&job, now()), "running", "it has not begun");
        job["latch"]["progress"] = json!({"stage": 2, "stages": 2});
        assert_eq!(state(&job, now()), "running stage 2 of 2 (100%)");
        job["latch"]["progress"]["continuousUntil"] = json!("2026-12-24T18:00:00.123Z");
        assert_eq!(state(&job, now()), "running stage 2 of 2 (100%), continuous until 2026-12-24T18:00:00Z");
    }

    #[test]
    fn what_a_job_waits_for_is_told() {
        let start = "2026-12-24T18:05:30.000Z";
        let begins = format!("begins in 2h 5m, at {start}");
        for (job, expected) in [
            (json!({"status": "scheduled", "startTime": start}), format!("scheduled: {begins}")),
            (json!({"status": "running", "startTime": start}), "running".to_owned()),
            (json!({"status": "queued", "startTime": "2026-12-24T16:00:00Z"}), "queued".to_owned()),
            (
                json!({"status": "scheduled", "startTime": "x", "latch": {"progress": {"next": [start]}}}),
                format!("scheduled: its next job {begins}"),
            ),
            (
                json!({"status": "queued", "latch": {"progress": {"listed": 7}}}),
                "queued: its list is being uploaded, 7 devices so far".to_owned(),
            ),
            (
                json!({"status": "running", "latch": {"progress": {"paused": {"by": "approval", "reason": "well"}}}}),
                "waits for approval: well".to_owned(),
            ),
            (
                json!({"status": "running", "latch": {"progress": {"ending": "stop", "window": {"open": false}}}}),
                "running: its end has come (stop)".to_owned(),
            ),
            (
                json!({"status": "running", "latch": {"progress": {"window": {"open": false, "opensAt": start}}}}),
                format!("running: waits for its window, which opens at {start}"),
            ),
            (
                json!({"status": "running", "latch": {"progress": {"window": {"open": true, "closesAt": start,
                    "opensAt": "2026-12-25T18:00:00Z"}}}}),
                "running".to_owned(),
            ),
            (
                json!({"status": "running", "latch": {"progress": {"window": {"open": true,
                    "closesAt": "2026-12-24T11:00:00Z", "opensAt": start}}}}),
                format!("running: waits for its window, which opens at {start}"),
            ),
            (
                json!({"status": "running", "deviceJobStatistics": {"runningCount": 1},
                    "latch": {"progress": {"window": {"open": false, "opensAt": start}}}}),
                "running".to_owned(),
            ),
        ] {
            assert_eq!(state(&job, now()), expected);
        }
        let paused = |by: &str| json!({"latch": {"progress": {"paused": {"by": by}}}});
        assert_eq!(hint("j", &paused("approval")).as_deref(), Some("latch job approve j, or latch job report j"));
        assert_eq!(hint("j", &paused("rule")).as_deref(), Some("latch job resume j, or latch job report j"));
        assert_eq!(hint("j", &json!({})), None);
    }

    #[test]
    fn rate_and_failures_are_told() {
        let statistics = json!({"deviceCount": 100, "failedCount": 7, "succeededCount": 3, "pendingCount": 80,
            "runningCount": 5});
        let failed = json!({"offline": 2, "timeout": 5});
        let mut job = json!({"deviceJobStatistics": statistics, "latch": {"progress": {"failures": failed}}});
        assert_eq!((failures(&job).as_str(), done(&job)), ("7 failed: 5 timeout, 2 offline", (15, 100)));
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(rate(&job, &pace), None);
        pace.read(start, 5);
        pace.read(start + Duration::from_secs(2), 15);
        assert_eq!(rate(&job, &pace).as_deref(), Some("5.0/s, eta 17s"));
        job["latch"] = Value::Null;
        assert_eq!(failures(&job), "7 failed", "Azure's tell no classes");
        assert_eq!((failures(&json!({})), done(&json!({}))), (String::new(), (0, 0)));
    }

    #[test]
    fn a_bar_fits_where_it_can() {
        let job = |done: u64, devices: u64| json!({"deviceJobStatistics": {"deviceCount": devices, "pendingCount": devices - done}});
        assert_eq!(bar(&job(0, 0), 60), format!("[{:<39}]    0%  0/0 devices", ""));
        assert_eq!(bar(&job(5, 10), 1), "[====>     ]   50%  5/10 devices", "never without a bar");
        for (done, devices) in [(1, 1), (1, 1000), (999, 1000), (u64::MAX, u64::MAX)] {
            let text = bar(&job(done, devices), 100);
            assert_eq!(text.contains('>'), done < devices && text.contains('='), "{text}");
            assert!(text.len() <= 100, "{text}");
        }
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
