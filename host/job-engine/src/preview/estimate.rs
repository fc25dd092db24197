//! How long a job takes.

use iothub_protocol::job::policy::{GrowAfter, JobPolicy, Rate, SuccessRule};
use iothub_protocol::job::{JobAction, JobRequest};

use super::actions;

/// What holds a job up beside its policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    pub(super) in_flight: usize,
    /// Devices a second, if the hub keeps to a tier.
    pub(super) devices: Option<f64>,
}

/// Whole seconds that a job over stages of such sizes takes: at least, if every device succeeds at once; and at most, if
/// every one takes all the time that it may have. Its own time ends it in any case.
pub(super) fn seconds(request: &JobRequest, stages: &[u64], pace: Pace) -> (u64, u64) {
    let policy = request.policy.as_ref();
    let rate = policy.and_then(|policy| policy.rate);
    let longest = longest_turn(request);
    let (mut least, mut most, mut started) = (0.0, 0.0, 0);
    for (place, size) in stages.iter().enumerate() {
        let by_rate = rate.map_or(0.0, |rate| spread(rate, started, *size));
        let by_tier = pace.devices.map_or(0.0, |devices| *size as f64 / devices);
        let starts = by_rate.max(by_tier);
        started += size;
        let rounds = size.div_ceil(pace.in_flight.max(1) as u64);
        let is_last = place + 1 == stages.len();
        let pause = policy.and_then(|policy| policy.stages.get(place)).filter(|_| !is_last);
        let pause = pause.map_or(0.0, |stage| f64::from(stage.pause_in_seconds));
        let soak = if *size > 0 { f64::from(policy.map_or(0, soak)) } else { 0.0 };
        least += starts + soak + pause;
        most += starts.max((rounds * longest) as f64) + soak + pause;
    }
    let wait = policy.map_or(0, |policy| policy.offline.wait_in_seconds);
    let window = u64::from(request.max_execution_time_in_seconds);
    let (least, most) = (least.ceil() as u64, (most + f64::from(wait)).ceil() as u64);
    (least, most.min(window).max(least))
}

/// How long starting so many devices takes at a rate, once so many have been started and have succeeded.
fn spread(rate: Rate, started: u64, count: u64) -> f64 {
    let (mut started, mut left, mut seconds) = (started, count, 0.0);
    while left > 0 {
        let now = rate.after(started, started).max(1);
        let step = match rate {
            Rate::Growing(growing) if now < growing.maximum => {
                let (GrowAfter::Started(step) | GrowAfter::Succeeded(step)) = growing.grow_after;
                let step = u64::from(step.max(1));
                (step - started % step).min(left)
            }
            _ => left,
        };
        seconds += step as f64 / f64::from(now);
        started += step;
        left -= step;
    }
    seconds
}

/// Seconds that one device may take, with all its retries.
fn longest_turn(request: &JobRequest) -> u64 {
    let policy = request.policy.as_ref();
    let of_one = |action: &JobAction| match action {
        JobAction::Method(method) => u64::from(method.response_timeout()) + u64::from(method.connect_timeout()),
        JobAction::UpdateTwin(_) => match policy.and_then(|policy| policy.succeed.as_ref()) {
            Some(SuccessRule::Report(rule)) => u64::from(rule.timeout_in_seconds),
            _ => 0,
        },
    };
    let waits = request.then.iter().filter_map(|step| step.when.twin.as_ref());
    let waits = waits.map(|wait| u64::from(wait.within_in_seconds)).sum::<u64>();
    let once = actions(request).map(of_one).sum::<u64>() + waits;
    let with_retries = |policy: &JobPolicy| {
        let rule = policy.retry.iter().max_by_key(|rule| rule.retries)?;
        let waits = (1..=rule.retries).map(|failures| u64::from(rule.backoff(failures))).sum::<u64>();
        Some(once * u64::from(rule.retries + 1) + waits)
    };
    policy.and_then(with_retries).unwrap_or(once)
}

fn soak(policy: &JobPolicy) -> u32 {
    match &policy.succeed {
        Some(SuccessRule::Report(rule)) => rule.soak_in_seconds,
        _ => 0,
    }
}
