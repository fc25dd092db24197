//! How a job goes, on stderr: a few lines that are drawn anew on a terminal, else a line now and then.

use std::time::{Duration, Instant};

use chrono::Utc;
use console::Style;
use iothub_protocol::id::JobId;
use serde_json::Value;

use super::pace::Pace;
use super::screen::Screen;
use super::text::{bar, done, failures, has_ended, hint, printable, rate, state};
use crate::output::say;
use crate::units::shown_duration;

/// Where stderr is no terminal, nothing is said of a job that ends so soon.
const QUIET: Duration = Duration::from_secs(2);
/// Between two lines that say nothing but how far a job is.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Between two lines that say the same.
const REMINDER: Duration = Duration::from_secs(60);
/// How long a hub is away before that is said: a restart takes about as long.
const MISSED: Duration = Duration::from_secs(1);

pub(super) struct View {
    id: String,
    job: Value,
    away_since: Option<Instant>,
    pace: Pace,
    form: Form,
}

enum Form {
    Screen(Screen),
    Lines(Said),
}

impl View {
    pub(super) fn new(id: &JobId) -> View {
        let form = match Screen::new() {
            Some(screen) => Form::Screen(screen),
            None => Form::Lines(Said { state: String::new(), done: 0, quiet_until: Instant::now() + QUIET }),
        };
        View { id: id.to_string(), job: Value::Null, away_since: None, pace: Pace::default(), form }
    }

    /// The job as it is now, and since when its hub has been away.
    pub(super) fn show(&mut self, job: &Value, away_since: Option<Instant>) {
        (self.job, self.away_since) = (job.clone(), away_since);
        let (done, devices) = done(job);
        match devices > 0 && job["latch"]["progress"]["paused"].is_null() {
            true => self.pace.read(Instant::now(), done),
            // While it stands still there is no rate, and afterwards that time does not count.
            false => self.pace = Pace::default(),
        }
        self.draw();
    }

    /// Time has passed, and nothing else.
    pub(super) fn tick(&mut self) {
        self.draw();
    }

    /// Leave the terminal as it was.
    pub(super) fn close(&mut self) {
        if let Form::Screen(screen) = &mut self.form {
            screen.clear();
        }
    }

    fn draw(&mut self) {
        let now = Instant::now();
        let away = self.away_since.map(|since| now - since).filter(|away| *away >= MISSED);
        match &mut self.form {
            Form::Screen(screen) => {
                let lines = screen_lines(&self.id, &self.job, &self.pace, away, Screen::width());
                screen.show(&lines.into_iter().map(|(kind, text)| (kind.style(), text)).collect::<Vec<_>>());
            }
            Form::Lines(said) => {
                let state = match away {
                    Some(_) => "cannot be seen: its hub is away".to_owned(),
                    None => printable(&state(&self.job, Utc::now())),
                };
                if !has_ended(&self.job) && said.is_news(&state, done(&self.job).0, now) {
                    say(&plain_line(&self.id, &state, &self.job, &self.pace));
                }
            }
        }
    }
}

/// What the last line said.
struct Said {
    state: String,
    done: u64,
    /// When the next one may come.
    quiet_until: Instant,
}

impl Said {
    /// Whether that is to be said now; then it counts as said.
    fn is_news(&mut self, state: &str, done: u64, now: Instant) -> bool {
        // How long it still waits is no news.
        let state = state.rsplit(", at ").next().unwrap_or_default();
        let is_other = self.state != state;
        let is_further = self.done != done && now >= self.quiet_until + LINE_EVERY;
        let is_news = now >= self.quiet_until && (is_other || is_further || now >= self.quiet_until + REMINDER);
        if is_news {
            *self = Said { state: state.to_owned(), done, quiet_until: now };
        }
        is_news
    }
}

/// `lock running: 15 of 100 devices, 5.0/s, eta 17s, 7 failed: 5 timeout, 2 offline`.
fn plain_line(id: &str, state: &str, job: &Value, pace: &Pace) -> String {
    let (done, devices) = done(job);
    let mut text = format!("{id} {state}: {done} of {devices} devices");
    for part in rate(job, pace).into_iter().chain(Some(failures(job)).filter(|text| !text.is_empty())) {
        text.push_str(&format!(", {part}"));
    }
    text
}

/// What a line of the screen is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Head,
    /// It does not go on by itself.
    Halt,
    Plain,
    Failures,
    Hint,
}

impl Kind {
    /// With colours, where the user and the terminal want any.
    fn style(self) -> Style {
        let style = Style::new().for_stderr();
        match self {
            Kind::Head => style.bold(),
            Kind::Halt => style.bold().yellow(),
            Kind::Plain => style,
            Kind::Failures => style.red(),
            Kind::Hint => style.dim(),
        }
    }
}

/// What is shown where there are so many columns.
fn screen_lines(id: &str, job: &Value, pace: &Pace, away: Option<Duration>, width: usize) -> Vec<(Kind, String)> {
    let is_paused = !job["latch"]["progress"]["paused"].is_null();
    let (kind, state) = match away {
        Some(away) => {
            let away = shown_duration(Duration::from_secs(away.as_secs()));
            (Kind::Halt, format!("cannot be seen: its hub has been away for {away}"))
        }
        None if is_paused => (Kind::Halt, state(job, Utc::now())),
        None => (Kind::Head, state(job, Utc::now())),
    };
    let mut lines = vec![(kind, format!("{id} {}", printable(&state)))];
    if done(job).1 > 0 {
        lines.push((Kind::Plain, bar(job, width)));
        lines.extend(rate(job, pace).filter(|_| away.is_none()).map(|rate| (Kind::Plain, rate)));
    }
    lines.extend(Some(failures(job)).filter(|text| !text.is_empty()).map(|text| (Kind::Failures, printable(&text))));
    lines.extend(hint(id, job).map(|hint| (Kind::Hint, hint)));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job() -> Value {
        let statistics = json!({"deviceCount": 1000, "failedCount": 12, "succeededCount": 408, "pendingCount": 570,
            "runningCount": 10});
        let paused = json!({"by": "rule", "reason": "12 of 420 devices failed,\u{1b}[2J more than 2%", "since": "x"});
        json!({"status": "running", "deviceJobStatistics": statistics,
            "latch": {"progress": {"failures": {"offline": 4, "timeout": 8}, "paused": paused}}})
    }

    #[test]
    fn what_a_job_waits_for_is_told_with_what_to_do() {
        let lines = screen_lines("lock", &job(), &Pace::default(), None, 99);
        let texts: Vec<_> = lines.iter().map(|(kind, text)| (*kind, text.as_str())).collect();
        let bar = format!("[{}>{}]   42%  420/1000 devices", "=".repeat(20), " ".repeat(29));
        assert_eq!(
            texts,
            [
                (Kind::Halt, "lock paused by its policy: 12 of 420 devices failed, [2J more than 2%"),
                (Kind::Plain, &*bar),
                (Kind::Failures, "12 failed: 8 timeout, 4 offline"),
                (Kind::Hint, "latch job resume lock, or latch job report lock"),
            ]
        );
    }

    #[test]
    fn lines_come_with_news_and_now_and_then() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut said = Said { state: String::new(), done: 0, quiet_until: at(2) };
        for (seconds, state, done, expected) in [
            (1, "running", 0, false),
            (2, "running", 0, true),
            (3, "running", 1, false),
            (7, "running", 1, true),
            (8, "paused", 1, true),
            (67, "paused", 1, false),
            (68, "paused", 1, true),
            (69, "begins in 2m, at T", 1, true),
            (70, "begins in 1m, at T", 1, false),
        ] {
            assert_eq!(said.is_news(state, done, at(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn a_hub_that_is_away_is_told_before_all_else() {
        let lines = screen_lines("lock", &job(), &Pace::default(), Some(Duration::from_millis(4200)), 99);
        assert_eq!(lines[0].1, "lock cannot be seen: its hub has been away for 4s");
        let line = plain_line("lock", "running", &job(), &Pace::default());
        assert_eq!(line, "lock running: 420 of 1000 devices, 12 failed: 8 timeout, 4 offline");
    }
}
