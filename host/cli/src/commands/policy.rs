//! From options to a job's policy.

use anyhow::bail;
use iothub_protocol::job::policy::{
    AbortRule, DEFAULT_ABORT_MINIMUM, DEFAULT_REPORT_TIMEOUT, DEFAULT_SUCCESS_THRESHOLD, JobPolicy, OnAbort, Stage,
    SuccessRule,
};
use iothub_service::ServiceClient;

use crate::args::{PolicyArgs, ReportArgs};

/// As the options say; `None` if they say nothing. The hub checks the whole. `plugin` is the one whose reports decide.
pub(super) fn policy(
    args: &PolicyArgs,
    plugin: Option<&str>,
    report: &ReportArgs,
) -> anyhow::Result<Option<JobPolicy>> {
    if plugin.is_none() && (report.soak.is_some() || report.report_within.is_some() || report.unpin_on_abort) {
        bail!(
            "--soak, --report-within and --unpin-on-abort need --success-by plugin:NAME, whose reports they are about"
        );
    }
    let stage = |percent: &u8| Stage {
        percent: *percent,
        success_threshold: args.stage_success.unwrap_or(DEFAULT_SUCCESS_THRESHOLD),
        minimum_sample: args.stage_sample,
        pause_in_seconds: args.pause.unwrap_or(0),
    };
    let policy = JobPolicy {
        stages: args.stage.iter().map(stage).collect(),
        rate: args.rate,
        abort: args.abort_failures.map(|failure_percent| AbortRule {
            failure_percent,
            minimum: args.minimum.unwrap_or(DEFAULT_ABORT_MINIMUM),
            window_in_seconds: args.abort_window,
        }),
        succeed: plugin.map(|plugin| SuccessRule {
            plugin: plugin.to_owned(),
            soak_in_seconds: report.soak.unwrap_or(0),
            timeout_in_seconds: report.report_within.unwrap_or(DEFAULT_REPORT_TIMEOUT),
        }),
        on_abort: if report.unpin_on_abort { OnAbort::Unpin } else { OnAbort::Keep },
    };
    Ok((policy != JobPolicy::default()).then_some(policy))
}

/// Azure would ignore a policy, and reach every device at once.
pub(super) fn check_hub(service: &ServiceClient) -> anyhow::Result<()> {
    if service.host().authority().contains(".azure-devices.") {
        bail!(
            "Azure IoT Hub has no policies for jobs: it would go over all devices at once\nhint: leave out --stage, \
             --rate, --abort-failures and --success-by, or use a narrower --query"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_policy_and_none_becomes_none() {
        let (none, report) = (PolicyArgs::default(), ReportArgs::default());
        assert_eq!(policy(&none, None, &report).ok(), Some(None));
        let soak = ReportArgs { soak: Some(10), ..ReportArgs::default() };
        assert!(policy(&none, None, &soak).is_err(), "a soak of nothing");
        let args = PolicyArgs { stage: vec![5, 100], abort_failures: Some(10), ..PolicyArgs::default() };
        let stage = |percent| Stage { percent, success_threshold: 90, minimum_sample: None, pause_in_seconds: 0 };
        let succeed = SuccessRule { plugin: "lamp".into(), soak_in_seconds: 10, timeout_in_seconds: 600 };
        let expected = JobPolicy {
            stages: vec![stage(5), stage(100)],
            rate: None,
            abort: Some(AbortRule { failure_percent: 10, minimum: 10, window_in_seconds: None }),
            succeed: Some(succeed),
            on_abort: OnAbort::Keep,
        };
        assert_eq!(policy(&args, Some("lamp"), &soak).ok(), Some(Some(expected)));
    }
}
