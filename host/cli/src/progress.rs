//! Progress as bars on stderr, where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use iothub_protocol::id::JobId;
use iothub_service::ServiceClient;
use serde_json::Value;

/// First pause between looks at a job; short, as most jobs are.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a hub under quota must not be asked more often.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Look at a job until it ends.
pub(crate) async fn follow_job(service: &ServiceClient, id: &JobId) -> anyhow::Result<Value> {
    let bar = job_bar();
    let mut pause = FIRST_PAUSE;
    loop {
        let job = service.get_job(id).await?;
        show(&bar, &job);
        if ended(&job) {
            bar.finish_and_clear();
            return Ok(job);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(LONGEST_PAUSE);
    }
}

/// A bar that hides itself where stderr is no terminal.
pub(crate) fn job_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{prefix} [{bar:40}] {pos}/{len} devices{msg}, {elapsed}, eta {eta}");
    bar.set_style(style.expect("the template is valid").progress_chars("=> "));
    bar
}

/// Show a job, as the hub answers it.
pub(crate) fn show(bar: &ProgressBar, job: &Value) {
    let count = |name: &str| job["deviceJobStatistics"][name].as_u64().unwrap_or(0);
    bar.set_prefix(status(job));
    bar.set_length(count("deviceCount"));
    bar.set_position(count("succeededCount") + count("failedCount"));
    bar.set_message(match count("failedCount") {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    });
}

/// `paused: stage 1 of 3 went well (waits for approval)`.
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

/// `running`, or `running stage 1 of 3 (5%)`, or why it is paused.
fn status(job: &Value) -> String {
    let status = job["status"].as_str().unwrap_or("unknown");
    let hold = &job["latch"]["progress"]["paused"];
    if !hold.is_null() {
        return paused(hold);
    }
    let (progress, stages) = (&job["latch"]["progress"], &job["latch"]["policy"]["stages"]);
    let number = progress["stage"].as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0);
    match number.checked_sub(1).and_then(|place| stages.get(place)) {
        Some(stage) => {
            let percent = stage["percent"].as_u64().map(|percent| format!("{percent}%"));
            let name = percent.or_else(|| stage["condition"].as_str().map(str::to_owned)).unwrap_or_default();
            format!("{status} stage {number} of {} ({name})", progress["stages"])
        }
        None => status.to_owned(),
    }
}

fn ended(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}

/// A bar over so many devices.
pub(crate) fn count_bar(prefix: &'static str, length: u64) -> ProgressBar {
    with_template(ProgressBar::new(length), "{prefix} [{bar:40}] {pos}/{len} devices, {elapsed}, eta {eta}", prefix)
}

/// A bar over the bytes of a file, if it is known how many they are.
pub(crate) fn byte_bar(prefix: &'static str, length: Option<u64>) -> ProgressBar {
    match length {
        Some(length) => {
            let template = "{prefix} [{bar:40}] {bytes}/{total_bytes}{msg}, {elapsed}, eta {eta}";
            with_template(ProgressBar::new(length), template, prefix)
        }
        None => with_template(ProgressBar::no_length(), "{prefix} {bytes}{msg}, {elapsed}", prefix),
    }
}

fn with_template(bar: ProgressBar, template: &str, prefix: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    bar.with_style(style.progress_chars("=> ")).with_prefix(prefix)
}
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_stage_is_told_where_there_is_one() {
        let mut job = json!({"status": "running"});
        assert_eq!(status(&job), "running");
        job["latch"] = json!({"policy": {"stages": []}, "progress": {"stage": 1, "stages": 1}});
        assert_eq!(status(&job), "running");
        job["latch"] = json!({"policy": {"stages": [{"percent": 5}, {"percent": 100}]}});
        assert_eq!(status(&job), "running", "it has not begun");
        job["latch"]["progress"] = json!({"stage": 2, "stages": 2});
        assert_eq!(status(&job), "running stage 2 of 2 (100%)");
    }
}
