//! From options to a job's policy.

use anyhow::bail;
use iothub_protocol::job::policy::{
    AbortRule, AnswerRule, DEFAULT_ABORT_MINIMUM, DEFAULT_BACKOFF, DEFAULT_LONGEST_BACKOFF, DEFAULT_RATE_FACTOR,
    DEFAULT_REPORT_TIMEOUT, DEFAULT_SUCCESS_THRESHOLD, EndRule, GrowingRate, InDoubt, JobPolicy, MAX_RATE, OfflineEnd,
    OfflineRule, OnAbort, Priority, Rate, ReportRule, RetryRule, Stage, SuccessRule,
};

use crate::args::{AnswerArgs, End, PolicyArgs, ReportArgs, Stages};

/// Of a method job, as the options say; `None` if they say nothing. The hub checks the whole.
pub(super) fn of_methods(args: &PolicyArgs, answer: &AnswerArgs) -> Option<JobPolicy> {
    let statuses = answer.success_status.clone();
    some(JobPolicy {
        succeed: (!statuses.is_empty()).then_some(SuccessRule::Answer(AnswerRule { statuses })),
        offline: OfflineRule {
            wait_in_seconds: answer.wait_offline.unwrap_or(0),
            then: if answer.skip_offline { OfflineEnd::Skip } else { OfflineEnd::Fail },
        },
        ..common(args)
    })
}

/// Of a twin job. `plugin` is the one whose reports decide.
pub(super) fn of_updates(
    args: &PolicyArgs,
    plugin: Option<&str>,
    report: &ReportArgs,
) -> anyhow::Result<Option<JobPolicy>> {
    if plugin.is_none() && (report.soak.is_some() || report.report_within.is_some() || report.unpin_on_abort) {
        bail!(
            "--soak, --report-within and --unpin-on-abort need --success-by plugin:NAME, whose reports they are about"
        );
    }
    let rule = plugin.map(|plugin| ReportRule {
        plugin: plugin.to_owned(),
        soak_in_seconds: report.soak.unwrap_or(0),
        timeout_in_seconds: report.report_within.unwrap_or(DEFAULT_REPORT_TIMEOUT),
    });
    let common = common(args);
    Ok(some(JobPolicy {
        succeed: rule.map(SuccessRule::Report),
        on_abort: if report.unpin_on_abort { OnAbort::Unpin } else { common.on_abort },
        ..common
    }))
}

fn some(policy: JobPolicy) -> Option<JobPolicy> {
    (policy != JobPolicy::default()).then_some(policy)
}

/// What methods and updates have in common.
fn common(args: &PolicyArgs) -> JobPolicy {
    let rate = |base: u32| match args.grow_after {
        None => Rate::Constant(base),
        Some(grow_after) => Rate::Growing(GrowingRate {
            base,
            factor: args.rate_factor.unwrap_or(DEFAULT_RATE_FACTOR),
            maximum: args.rate_max.unwrap_or(MAX_RATE),
            grow_after,
        }),
    };
    let abort = args.abort_failures.map(|failure_percent| AbortRule {
        failure_percent,
        on: args.abort_on.clone(),
        minimum: args.minimum.unwrap_or(DEFAULT_ABORT_MINIMUM),
        window_in_seconds: args.abort_window,
        per_group: args.abort_per_group,
    });
    let backoff_in_seconds = args.backoff.unwrap_or(DEFAULT_BACKOFF);
    let retry = args.retry.iter().map(|retry| RetryRule {
        on: retry.on.clone(),
        retries: retry.retries,
        backoff_in_seconds,
        maximum_backoff_in_seconds: args.backoff_max.unwrap_or(DEFAULT_LONGEST_BACKOFF.max(backoff_in_seconds)),
    });
    JobPolicy {
        stages: stages_of(args),
        rate: args.rate.map(rate),
        abort: abort.into_iter().collect(),
        retry: retry.collect(),
        in_doubt: if args.fail_in_doubt { InDoubt::Fail } else { InDoubt::Again },
        on_abort: if args.pause_on_abort { OnAbort::Pause } else { OnAbort::Keep },
        group_by: args.group_by.clone(),
        priority: args.priority.map(Priority).unwrap_or_default(),
        windows: args.window.clone(),
        end: args.end.map(|end| end_of(end, args)),
        device_timeout_in_seconds: args.device_timeout,
        ..JobPolicy::default()
    }
}

fn end_of(end: End, args: &PolicyArgs) -> EndRule {
    let (at, after_in_seconds) = match end {
        End::At(at) => (Some(at), None),
        End::After(seconds) => (None, Some(seconds)),
    };
    EndRule { at, after_in_seconds, then: args.end_then.unwrap_or_default() }
}

fn stages_of(args: &PolicyArgs) -> Vec<Stage> {
    let with_rules = |stage: Stage| Stage {
        success_threshold: args.stage_success.unwrap_or(DEFAULT_SUCCESS_THRESHOLD),
        minimum_sample: args.stage_sample,
        pause_in_seconds: args.pause.unwrap_or(0),
        approval: args.stage_approval,
        ..stage
    };
    let stages = args.stage.iter().flat_map(|stages| match stages {
        Stages::Percent(percentages) => percentages.iter().copied().map(Stage::new).collect(),
        Stages::Query(condition) => vec![Stage::of_condition(Some(condition.clone()))],
    });
    stages.map(with_rules).collect()
}

#[cfg(test)]
mod tests {
    use iothub_protocol::job::policy::{FailureClass, GrowAfter};

    use super::*;
    use crate::args::Retries;

    #[test]
    fn options_become_a_policy_and_none_becomes_none() {
        let (none, report) = (PolicyArgs::default(), ReportArgs::default());
        assert_eq!(of_updates(&none, None, &report).ok(), Some(None));
        assert_eq!(of_methods(&none, &AnswerArgs::default()), None);
        let soak = ReportArgs { soak: Some(10), ..ReportArgs::default() };
        assert!(of_updates(&none, None, &soak).is_err(), "a soak of nothing");
        let args = PolicyArgs {
            stage: vec![Stages::Percent(vec![5, 100])],
            abort_failures: Some(10),
            ..PolicyArgs::default()
        };
        let stage = |percent| Stage::new(percent);
        let rule = ReportRule { plugin: "lamp".into(), soak_in_seconds: 10, timeout_in_seconds: 600 };
        let abort = AbortRule::new(10);
        let expected = JobPolicy {
            stages: vec![stage(5), stage(100)],
            abort: vec![abort],
            succeed: Some(SuccessRule::Report(rule)),
            ..JobPolicy::default()
        };
        assert_eq!(of_updates(&args, Some("lamp"), &soak).ok(), Some(Some(expected)));
    }

    #[test]
    fn options_for_methods_become_rules() {
        let timeout = vec![FailureClass::Timeout];
        let args = PolicyArgs {
            rate: Some(5),
            grow_after: Some(GrowAfter::Started(100)),
            abort_failures: Some(1),
            abort_on: timeout.clone(),
            retry: vec![Retries { on: timeout.clone(), retries: 3 }],
            backoff: Some(900),
            fail_in_doubt: true,
            ..PolicyArgs::default()
        };
        let answer = AnswerArgs { success_status: vec![[200, 299]], wait_offline: Some(60), skip_offline: true };
        let growing = GrowingRate { base: 5, factor: 2, maximum: MAX_RATE, grow_after: GrowAfter::Started(100) };
        let expected = JobPolicy {
            rate: Some(Rate::Growing(growing)),
            abort: vec![AbortRule { on: timeout.clone(), ..AbortRule::new(1) }],
            retry: vec![RetryRule {
                on: timeout,
                retries: 3,
                backoff_in_seconds: 900,
                maximum_backoff_in_seconds: 900,
            }],
            succeed: Some(SuccessRule::Answer(AnswerRule { statuses: vec![[200, 299]] })),
            offline: OfflineRule { wait_in_seconds: 60, then: OfflineEnd::Skip },
            in_doubt: InDoubt::Fail,
            ..JobPolicy::default()
        };
        assert_eq!(of_methods(&args, &answer), Some(expected));
    }
}
