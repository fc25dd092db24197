//! What policies are read and what are refused.

use serde_json::json;

use super::*;
use crate::job::TwinUpdate;
use crate::method::DirectMethod;

fn pin() -> JobAction {
    let desired = json!({"latch": {"plugins": {"lock-door": "2.0.0"}}}).as_object().cloned();
    JobAction::UpdateTwin(TwinUpdate { tags: None, desired })
}

fn method() -> JobAction {
    JobAction::Method(DirectMethod::from_json(br#"{"methodName": "lockDoor"}"#).expect("a method"))
}

fn read(policy: &str, action: &JobAction) -> Result<JobPolicy, String> {
    let policy = serde_json::from_str(policy).expect(policy);
    JobPolicy::from_json(&policy, action, 1000).map_err(|error| error.message)
}

fn report(soak_in_seconds: u32, timeout_in_seconds: u32) -> Option<SuccessRule> {
    Some(SuccessRule::Report(ReportRule { plugin: "lock-door".to_owned(), soak_in_seconds, timeout_in_seconds }))
}

fn abort(failure_percent: u8, minimum: u32, window_in_seconds: Option<u32>) -> AbortRule {
    AbortRule { minimum, window_in_seconds, ..AbortRule::new(failure_percent) }
}

#[test]
fn a_policy_is_read_with_its_defaults_and_written_back() {
    let staged = JobPolicy { stages: vec![Stage::new(5), Stage::new(100)], ..JobPolicy::default() };
    let whole = r#"{"stages": [{"percent": 100, "successThreshold": 50, "minimumSample": 3, "pauseInSeconds": 60}],
        "rate": 7, "abort": {"failurePercent": 10, "minimum": 20, "windowInSeconds": 600},
        "succeed": {"plugin": "lock-door", "soakInSeconds": 10, "timeoutInSeconds": 30}, "onAbort": "unpin"}"#;
    let stage = Stage { success_threshold: 50, minimum_sample: Some(3), pause_in_seconds: 60, ..Stage::new(100) };
    for (text, expected) in [
        ("{}", JobPolicy::default()),
        (r#"{"stages": [], "rate": null, "onAbort": "keep"}"#, JobPolicy::default()),
        (r#"{"stages": [{"percent": 5}, {"percent": 100}]}"#, staged),
        (
            r#"{"abort": {"failurePercent": 0}, "succeed": {"plugin": "lock-door"}}"#,
            JobPolicy { abort: vec![abort(0, 10, None)], succeed: report(0, 600), ..JobPolicy::default() },
        ),
        (
            whole,
            JobPolicy {
                stages: vec![stage],
                rate: Some(Rate::Constant(7)),
                abort: vec![abort(10, 20, Some(600))],
                succeed: report(10, 30),
                on_abort: OnAbort::Unpin,
                ..JobPolicy::default()
            },
        ),
    ] {
        assert_eq!(read(text, &pin()).as_ref(), Ok(&expected), "{text}");
        assert_eq!(JobPolicy::from_json(&json!(expected), &pin(), 1000), Ok(expected), "{text}");
    }
}

#[test]
fn rules_for_methods_are_read_and_written_back() {
    let text = r#"{"rate": {"base": 5, "growAfter": {"succeeded": 100}},
        "abort": [{"failurePercent": 5, "on": ["timeout", "fault"]}, {"failurePercent": 50}],
        "retry": [{"on": ["timeout"], "retries": 3, "backoffInSeconds": 2}, {"on": ["fault", "timeout"], "retries": 1}],
        "succeed": {"statuses": [[200, 299], [409, 409]]},
        "offline": {"waitInSeconds": 600, "then": "skip"}, "inDoubt": "fail"}"#;
    let grow_after = GrowAfter::Succeeded(100);
    let (timeout, fault) = (FailureClass::Timeout, FailureClass::Fault);
    let retry = |on, retries, backoff_in_seconds| RetryRule {
        on,
        retries,
        backoff_in_seconds,
        maximum_backoff_in_seconds: 600,
    };
    let expected = JobPolicy {
        rate: Some(Rate::Growing(GrowingRate { base: 5, factor: 2, maximum: 10_000, grow_after })),
        abort: vec![AbortRule { on: vec![timeout, fault], ..abort(5, 10, None) }, abort(50, 10, None)],
        retry: vec![retry(vec![timeout], 3, 2), retry(vec![fault, timeout], 1, 5)],
        succeed: Some(SuccessRule::Answer(AnswerRule { statuses: vec![[200, 299], [409, 409]] })),
        offline: OfflineRule { wait_in_seconds: 600, then: OfflineEnd::Skip },
        in_doubt: InDoubt::Fail,
        ..JobPolicy::default()
    };
    assert_eq!(read(text, &method()).as_ref(), Ok(&expected));
    assert_eq!(JobPolicy::from_json(&json!(expected), &method(), 1000), Ok(expected.clone()));
    assert_eq!(expected.retry_of(timeout).map(|rule| rule.retries), Some(3), "the first rule that names it");
    assert_eq!([200, 404, 409].map(|status| expected.is_success(status)), [true, false, true]);
    assert!(JobPolicy::default().is_success(500), "any answer");
}

#[test]
fn stages_by_condition_come_before_those_by_percentage() {
    let canary = Stage::of_condition(Some("tags.ring = 'canary'".into()));
    let text = r#"{"stages": [{"condition": "tags.ring = 'canary'"}, {"percent": 50}, {"percent": 100}]}"#;
    let stages = vec![canary, Stage::new(50), Stage::new(100)];
    assert_eq!(stages.iter().map(Stage::name).collect::<Vec<_>>(), ["tags.ring = 'canary'", "50%", "100%"]);
    let expected = JobPolicy { stages, ..JobPolicy::default() };
    assert_eq!(read(text, &pin()).as_ref(), Ok(&expected));
    assert_eq!(JobPolicy::from_json(&json!(expected), &pin(), 1000), Ok(expected));
    for (stages, text) in [
        (r#"[{"condition": "tags.x = 1"}]"#, "must end with"),
        (r#"[{"percent": 5}, {"condition": "tags.x = 1"}, {"percent": 100}]"#, "must come before"),
        (r#"[{"condition": "*"}, {"percent": 100}]"#, "holds for every device"),
        (r#"[{"condition": "tags."}, {"percent": 100}]"#, "stages[0].condition: SQL query parse failed"),
        (r#"[{"condition": "tags.x = 1", "percent": 100}]"#, "must be there, and not both"),
        (r#"[{"successThreshold": 1}, {"percent": 100}]"#, "must be there, and not both"),
    ] {
        let refused = read(&format!(r#"{{"stages": {stages}}}"#), &pin()).expect_err(stages);
        assert!(refused.contains(text), "{stages}: {refused}");
    }
    let many = format!("[{}{{\"percent\": 100}}]", r#"{"condition": "tags.x = 1"},"#.repeat(MAX_RULES + 1));
    assert!(read(&format!(r#"{{"stages": {many}}}"#), &pin()).expect_err("too many").contains("more than 16"));
}

#[test]
fn what_is_not_known_or_not_possible_is_refused_with_its_place() {
    for (policy, text) in [
        ("[]", "latch.policy must be an object"),
        (r#"{"stage": []}"#, r#"latch.policy has no field "stage", only stages, rate, abort, retry, succeed, "#),
        (r#"{"stages": [{}]}"#, "latch.policy.stages[0].percent or condition must be there"),
        (r#"{"stages": [{"percent": 5, "soak": 1}]}"#, "latch.policy.stages: unknown field `soak`"),
        (r#"{"stages": [{"percent": "5"}]}"#, "latch.policy.stages: invalid type"),
        (r#"{"stages": [{"percent": 0}]}"#, "latch.policy.stages[0].percent must be above 0"),
        (r#"{"stages": [{"percent": 5}, {"percent": 5}]}"#, "latch.policy.stages[1].percent must be above 5"),
        (r#"{"stages": [{"percent": 101}]}"#, "latch.policy.stages[0].percent must be above 0 and at most 100"),
        (r#"{"stages": [{"percent": 50}]}"#, "latch.policy.stages must end with"),
        (r#"{"stages": [{"percent": 100, "successThreshold": 101}]}"#, "successThreshold must be within [0; 100]"),
        (r#"{"stages": [{"percent": 100, "minimumSample": 0}]}"#, "minimumSample must be at least 1"),
        (r#"{"stages": [{"percent": 100, "pauseInSeconds": 2592001}]}"#, "pauseInSeconds must be within"),
        (r#"{"rate": 0}"#, "latch.policy.rate must be within [1; 10000]"),
        (r#"{"rate": -1}"#, "latch.policy.rate: the rate is a whole number, or an object with base, factor"),
        (r#"{"rate": {"base": 5}}"#, "latch.policy.rate: the rate is a whole number, or an object with base"),
        (r#"{"rate": {"base": 0, "growAfter": {"started": 1}}}"#, "latch.policy.rate.base must be within"),
        (r#"{"rate": {"base": 5, "maximum": 4, "growAfter": {"started": 1}}}"#, "rate.maximum must be within [5;"),
        (r#"{"rate": {"base": 5, "factor": 1, "growAfter": {"started": 1}}}"#, "rate.factor must be within [2; 10]"),
        (r#"{"rate": {"base": 5, "growAfter": {"started": 0}}}"#, "rate.growAfter.started must be at least 1"),
        (r#"{"abort": {}}"#, "latch.policy.abort: missing field `failurePercent`"),
        (r#"{"abort": {"failurePercent": 100}}"#, "latch.policy.abort.failurePercent must be within [0; 99]"),
        (r#"{"abort": {"failurePercent": 1, "minimum": 0}}"#, "latch.policy.abort.minimum must be at least 1"),
        (r#"{"abort": {"failurePercent": 1, "windowInSeconds": 0}}"#, "abort.windowInSeconds must be within"),
        (r#"{"abort": [{"failurePercent": 1}, {"failurePercent": 1, "minimum": 0}]}"#, "latch.policy.abort[1].minimum"),
        (r#"{"abort": {"failurePercent": 1, "on": ["bad"]}}"#, "latch.policy.abort: unknown variant `bad`"),
        (r#"{"retry": {}}"#, "latch.policy.retry: invalid type"),
        (r#"{"retry": [{"on": [], "retries": 1}]}"#, "retry[0].on must name at least one class of failures: offline,"),
        (r#"{"retry": [{"on": ["version"], "retries": 1}]}"#, "retry[0].on cannot name version"),
        (r#"{"retry": [{"on": ["unknown"], "retries": 1}]}"#, "retry[0].on cannot name unknown"),
        (r#"{"retry": [{"on": ["timeout"], "retries": 0}]}"#, "retry[0].retries must be within [1; 100]"),
        (r#"{"retry": [{"on": ["timeout"], "retries": 1, "backoffInSeconds": 0}]}"#, "backoffInSeconds must be within"),
        (
            r#"{"retry": [{"on": ["timeout"], "retries": 1, "backoffInSeconds": 9, "maximumBackoffInSeconds": 8}]}"#,
            "maximumBackoffInSeconds must be within [9;",
        ),
        (r#"{"offline": {"waitInSeconds": 5}}"#, "latch.policy.offline is for methods"),
        (r#"{"inDoubt": "perhaps"}"#, "latch.policy.inDoubt: unknown variant `perhaps`"),
        (r#"{"succeed": {"statuses": [[200, 200]]}}"#, "latch.policy.succeed.statuses needs a scheduleDeviceMethod"),
        (r#"{"succeed": {}}"#, "latch.policy.succeed: missing field `plugin`"),
        (r#"{"succeed": {"plugin": "lamp"}}"#, r#"plugin needs a scheduleUpdateTwin that pins it: {"properties""#),
        (r#"{"succeed": {"plugin": "lock-door", "timeoutInSeconds": 0}}"#, "timeoutInSeconds must be within"),
        (
            r#"{"stages": [{"percent": 50, "pauseInSeconds": 800}, {"percent": 100, "pauseInSeconds": 999}],
                "succeed": {"plugin": "lock-door", "soakInSeconds": 100}}"#,
            "maxExecutionTimeInSeconds is 1000, and latch.policy alone pauses and soaks for 1000 seconds",
        ),
        (r#"{"onAbort": "explode"}"#, "latch.policy.onAbort: unknown variant `explode`"),
        (r#"{"retry": [{"on": ["window"], "retries": 1}]}"#, "retry[0].on cannot name window"),
        (r#"{"windows": [{"cron": "* * * * *"}]}"#, "latch.policy.windows: missing field `durationInSeconds`"),
        (
            r#"{"windows": [{"cron": "* * * * *", "durationInSeconds": 604801}]}"#,
            "latch.policy.windows[0].durationInSeconds must be within [1; 604800]",
        ),
        (r#"{"end": {}}"#, "latch.policy.end.at or afterInSeconds must be there"),
        (r#"{"end": {"afterInSeconds": 0}}"#, "latch.policy.end.afterInSeconds must be within [1;"),
        (r#"{"end": {"afterInSeconds": 1000}}"#, "so that latch.policy.end.afterInSeconds 1000 never comes"),
        (r#"{"end": {"afterInSeconds": 1, "then": "wait"}}"#, "latch.policy.end: unknown variant `wait`"),
        (r#"{"deviceTimeoutInSeconds": 0}"#, "latch.policy.deviceTimeoutInSeconds must be within [1; 2592000]"),
        (r#"{"onAbort": "unpin"}"#, "onAbort \"unpin\" needs succeed"),
    ] {
        let refused = read(policy, &pin()).expect_err(policy);
        assert!(refused.contains(text), "{policy}: {refused}");
    }
    for (policy, text) in [
        (r#"{"succeed": {"plugin": "lock-door"}}"#, "latch.policy.succeed.plugin needs a scheduleUpdateTwin"),
        (r#"{"succeed": {"statuses": []}}"#, "latch.policy.succeed.statuses must have at least one range"),
        (r#"{"succeed": {"statuses": [[9, 8]]}}"#, "latch.policy.succeed.statuses has [9, 8]"),
        (r#"{"succeed": {"statuses": [[1, 2]], "plugin": "lock-door"}}"#, "succeed: unknown field `plugin`"),
        (r#"{"offline": {"waitInSeconds": 2592001}}"#, "latch.policy.offline.waitInSeconds must be within"),
        (
            r#"{"offline": {"then": "skip"}, "retry": [{"on": ["offline"], "retries": 1}]}"#,
            "offline and a retry rule for offline do not go together",
        ),
    ] {
        let refused = read(policy, &method()).expect_err(policy);
        assert!(refused.contains(text), "{policy}: {refused}");
    }
}
