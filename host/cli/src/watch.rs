//! Follows a job until it ends: by its events, and where there are none, as at Azure, by looking at it now and then.
//!
//! A hub that goes away meanwhile is waited for: the job may well go on when it is back.

mod pace;
mod screen;
mod text;
mod view;

use std::time::{Duration, Instant};

use anyhow::bail;
use iothub_protocol::id::JobId;
use iothub_service::{JobEvents, ServiceClient, ServiceError};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::output::line;
use text::has_ended;
pub(crate) use text::{continuous, failures, paused};
use view::View;

/// First pause between looks at a job; short, as most jobs are.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a hub under quota must not be asked more often.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Between two tries to reach a hub that is away.
const RETURN_PAUSE: Duration = Duration::from_secs(1);
/// How long a hub may be away.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a stream may tell of no change, until the job is looked at all the same: that a maintenance window has closed
/// is none.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(250);

/// What goes to stdout while a job is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Print {
    Nothing,
    /// The job at each change, in one line.
    Changes,
}

/// Follow a job until it ends, and show how it goes. The job as it ended.
///
/// # Errors
/// If the user has had enough, which `leave` tells, there is no such job, or its hub is away for too long.
pub(crate) async fn follow(
    service: &ServiceClient,
    id: &JobId,
    print: Print,
    leave: impl Future<Output = ()>,
) -> anyhow::Result<Value> {
    tokio::pin!(leave);
    let mut follower = Follower::new(service, id).await?;
    let mut view = View::new(id);
    let mut ticks = tokio::time::interval(TICK);
    let mut printed = Value::Null;
    loop {
        view.show(&follower.job, follower.away_since);
        if print == Print::Changes && printed != follower.job {
            printed.clone_from(&follower.job);
            line(&printed.to_string())?;
        }
        if has_ended(&follower.job) {
            view.close();
            return Ok(follower.job);
        }
        let next = follower.next();
        tokio::pin!(next);
        loop {
            tokio::select! {
                met = &mut next => {
                    met?;
                    break;
                }
                _ = ticks.tick() => view.tick(),
                () = &mut leave => {
                    view.close();
                    bail!("no longer watching; the job {id} goes on\nhint: latch job watch {id}, or latch job cancel {id}");
                }
            }
        }
    }
}

/// How a job is heard of.
enum Source {
    /// To be asked for.
    Events,
    Stream(Box<JobEvents>),
    /// The hub has no events.
    Looks,
}

struct Follower<'a> {
    service: &'a ServiceClient,
    id: &'a JobId,
    source: Source,
    /// The last event's id.
    last: Option<String>,
    /// Until the next look at the job.
    pause: Duration,
    job: Value,
    /// Since when the hub has not answered.
    away_since: Option<Instant>,
}

impl Follower<'_> {
    async fn new<'a>(service: &'a ServiceClient, id: &'a JobId) -> Result<Follower<'a>, ServiceError> {
        let job = service.get_job(id).await?;
        let (source, pause) = (Source::Events, FIRST_PAUSE);
        Ok(Follower { service, id, source, last: None, pause, job, away_since: None })
    }

    /// Until there is something to show.
    async fn next(&mut self) -> Result<(), ServiceError> {
        match &mut self.source {
            Source::Events => match self.service.job_events(self.id, self.last.as_deref()).await {
                Ok(Some(events)) => self.source = Source::Stream(Box::new(events)),
                Ok(None) => return self.look().await,
                // Such as Azure's, to which that is no address; or there are too many streams.
                Err(ServiceError::Hub(_)) => self.source = Source::Looks,
                Err(error) => return self.missed(error).await,
            },
            Source::Stream(events) => match timeout(LOOK_EVERY, events.next()).await {
                Err(_) => return self.look().await,
                Ok(Ok(Some((seen, news)))) => {
                    self.last = seen.or(self.last.take());
                    merge(&mut self.job, &news);
                    if has_ended(&self.job) {
                        // Events do not hold all of a job.
                        return self.look().await;
                    }
                }
                // A hub that stops ends its streams, as does one that is overburdened.
                Ok(Ok(None) | Err(_)) => {
                    self.source = Source::Events;
                    sleep(RETURN_PAUSE).await;
                    return Ok(());
                }
            },
            Source::Looks => {
                sleep(self.pause).await;
                self.pause = (self.pause * 5 / 4).min(LONGEST_PAUSE);
                return self.look().await;
            }
        }
        self.away_since = None;
        Ok(())
    }

    async fn look(&mut self) -> Result<(), ServiceError> {
        match self.service.get_job(self.id).await {
            Ok(job) => (self.job, self.away_since) = (job, None),
            Err(error) => self.missed(error).await?,
        }
        Ok(())
    }

    /// Wait for a hub that cannot be reached.
    async fn missed(&mut self, error: ServiceError) -> Result<(), ServiceError> {
        let is_away = matches!(error, ServiceError::Transport { .. });
        let since = *self.away_since.get_or_insert_with(Instant::now);
        if !is_away || since.elapsed() > PATIENCE {
            return Err(error);
        }
        sleep(RETURN_PAUSE).await;
        Ok(())
    }
}

/// Take what an event says of a job.
fn merge(job: &mut Value, news: &Value) {
    for (name, value) in news.as_object().into_iter().flatten() {
        match name.as_str() {
            "latch" => job["latch"]["progress"] = value["progress"].clone(),
            _ => job[name] = value.clone(),
        }
    }
    if news["latch"].is_null() && job["latch"].is_object() {
        job["latch"]["progress"] = Value::Null;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_keep_what_they_do_not_hold() {
        let mut job = json!({"status": "running", "cloudToDeviceMethod": {}, "latch": {"policy": {"rate": 5}}});
        let progress = json!({"failures": {"offline": 2}});
        merge(&mut job, &json!({"status": "running", "latch": {"version": 1, "progress": progress}}));
        assert_eq!((&job["latch"]["policy"]["rate"], &job["latch"]["progress"]), (&json!(5), &progress));
        assert!(job["cloudToDeviceMethod"].is_object());
        merge(&mut job, &json!({"status": "completed"}));
        assert_eq!((has_ended(&job), &job["latch"]["progress"]), (true, &Value::Null));
    }
}
