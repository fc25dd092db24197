use std::collections::{BinaryHeap, VecDeque};

use chrono::DateTime;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::query::Query;
use iothub_protocol::quota::limiter::{Limiter, Shaping, Verdict};
use iothub_protocol::quota::tier::{Rate, Tier};
use serde_json::json;

use super::*;
use crate::testing::{ScriptedHub, answer};

fn addresses(texts: &[&str]) -> Vec<Address> {
    texts.iter().map(|text| Address::parse(text).expect(text)).collect()
}

fn method() -> DirectMethod {
    serde_json::from_value(json!({"methodName": "lockDoor", "responseTimeoutInSeconds": 20})).expect("a method")
}

fn s1(class: Class) -> Rate {
    Sku::new(Tier::S1, 1).expect("a size").rate(class)
}

/// A crowd of callers and a hub, on a clock of their own.
struct Crowd {
    pace: Pace,
    hub: Limiter,
    /// Whoever stands in line.
    line: VecDeque<usize>,
    patience: Vec<Patience>,
    events: BinaryHeap<std::cmp::Reverse<(Instant, usize, What)>>,
    next_look: Option<Instant>,
    left: usize,
    refused: usize,
    failed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The first in line asks again.
    Look,
    Answered,
    /// With the seconds that the hub asks for.
    Refused(u64),
    /// Comes back to the line.
    Back,
}

/// From a caller to the hub and back.
const ROUND_TRIP: Duration = Duration::from_millis(40);

impl Crowd {
    /// So many callers make so many calls to a hub of that rate, whose burst is used up. Answers how long it takes.
    fn run(pace: Pace, rate: Rate, callers: usize, calls: usize) -> (Crowd, Duration) {
        let start = Instant::now();
        let mut hub = Limiter::new(rate, Shaping::default());
        while hub.admit(start, METHOD_STEP) == Verdict::Now {}
        let line = (0..callers).collect();
        let patience = (0..callers).map(|_| Patience::new(false)).collect();
        let events = BinaryHeap::new();
        let mut crowd =
            Crowd { pace, hub, line, patience, events, next_look: None, left: calls, refused: 0, failed: 0 };
        let mut now = start;
        crowd.look(now);
        while let Some(std::cmp::Reverse((at, caller, what))) = crowd.events.pop() {
            now = at;
            crowd.happened(now, caller, what);
            crowd.look(now);
        }
        (crowd, now - start)
    }

    fn look(&mut self, now: Instant) {
        while self.left > 0
            && let Some(caller) = self.line.front().copied()
        {
            match self.pace.turn(now, METHOD_STEP) {
                Turn::At(at) => {
                    if self.next_look.is_none_or(|next| at < next) {
                        self.next_look = Some(at);
                        self.push(at, caller, What::Look);
                    }
                    return;
                }
                Turn::Now => {
                    self.line.pop_front();
                    self.left -= 1;
                    let arrived = now + ROUND_TRIP / 2;
                    match self.hub.admit(arrived, METHOD_STEP) {
                        Verdict::Now => self.push(arrived + ROUND_TRIP / 2, caller, What::Answered),
                        Verdict::At(at) => self.push(at + ROUND_TRIP / 2, caller, What::Answered),
                        Verdict::Refused { retry_after } => {
                            let seconds = retry_after.as_secs_f64().ceil() as u64;
                            self.push(arrived + ROUND_TRIP / 2, caller, What::Refused(seconds));
                        }
                    }
                }
            }
        }
    }

    fn happened(&mut self, now: Instant, caller: usize, what: What) {
        match what {
            What::Look => self.next_look = self.next_look.filter(|next| *next > now),
            What::Answered => {
                self.pace.went_well(now);
                self.patience[caller] = Patience::new(false);
                self.line.push_back(caller);
            }
            What::Refused(seconds) => {
                self.refused += 1;
                self.left += 1;
                let failure = failure(FailureKind::Throttled, Some(Duration::from_secs(seconds)));
                self.pace.throttled(now, failure.retry_after);
                // As different from each other as callers are.
                let random = (caller * 7919 % 1000) as f64 / 1000.0;
                match self.patience[caller].after(now, &failure, random) {
                    Some(wait) => self.push(now + wait, caller, What::Back),
                    None => self.failed += 1,
                }
            }
            What::Back => self.line.push_back(caller),
        }
    }

    fn push(&mut self, at: Instant, caller: usize, what: What) {
        self.events.push(std::cmp::Reverse((at, caller, what)));
    }
}

fn failure(kind: FailureKind, retry_after: Option<Duration>) -> Failure {
    let error = HubError::new(ErrorCode::ThrottlingException, "slow down").into();
    Failure { error, kind, retry_after }
}

#[test]
fn a_crowd_gets_through_a_throttle_and_nobody_fails() {
    let (rate, calls) = (s1(Class::Methods), 12_000);
    let half = Rate { amount: rate.amount / 2, ..rate };
    // A method call of up to 4 KiB: 40 a second.
    let ideal = |rate: Rate| calls as f64 * METHOD_STEP as f64 / rate.amount as f64;
    for (name, known, hub, callers, most_refused) in [
        ("the tier is known", Some(rate), rate, 256, 0),
        ("the tier is not known", None, rate, 2000, calls / 3),
        ("others take half of it", Some(rate), half, 2000, calls / 3),
    ] {
        let (crowd, took) = Crowd::run(Pace::new(known), hub, callers, calls);
        let took = took.as_secs_f64() / ideal(hub);
        assert_eq!((crowd.left, crowd.failed), (0, 0), "{name}");
        assert!(took < 1.5, "{name}: {took} times as long as it must, {} refused", crowd.refused);
        assert!(crowd.refused <= most_refused, "{name}: {} refused", crowd.refused);
    }
}

#[test]
fn a_pause_is_kept_by_all_and_news_doubles_the_distance() {
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    let mut pace = Pace::new(None);
    assert!((0..10).all(|_| pace.turn(start, 1) == Turn::Now), "nothing is known yet");
    pace.throttled(at(100), Some(Duration::from_secs(3)));
    // Of a call that went before the pause.
    pace.throttled(at(200), Some(Duration::from_secs(3)));
    assert_eq!(pace.turn(at(300), 1), Turn::At(at(3200)));
    // Ten went in a second: five are tried.
    assert_eq!(pace.turn(at(3200), 1), Turn::Now);
    assert_eq!(pace.turn(at(3200), 1), Turn::At(at(3400)));
    pace.throttled(at(3300), None);
    assert_eq!(pace.turn(at(4300), 1), Turn::Now);
    assert_eq!(pace.turn(at(4300), 1), Turn::At(at(4300 + 400)));
    // An hour is not believed.
    pace.throttled(at(5000), Some(Duration::from_secs(3600)));
    assert_eq!(pace.turn(at(5000), 1), Turn::At(at(65_000)));
    // After a while without a refusal there is no distance any more.
    (65..300).for_each(|second| pace.went_well(at(second * 1000)));
    assert!((0..10).all(|_| pace.turn(at(300_000), 1) == Turn::Now));
}

#[test]
fn a_call_is_sent_again_only_where_that_is_safe_and_not_for_ever() {
    use FailureKind::{Broken, Lost, NotSent, Refused, Throttled, Unavailable};
    let start = Instant::now();
    for (kind, once, twice) in [
        (Throttled, true, true),
        (NotSent, true, true),
        (Lost, false, true),
        (Unavailable, false, true),
        (Broken, false, true),
        (Refused, false, false),
    ] {
        for (repeatable, again) in [(false, once), (true, twice)] {
            let wait = Patience::new(repeatable).after(start, &failure(kind, None), 0.5);
            assert_eq!(wait.is_some(), again, "{kind:?}, repeatable: {repeatable}");
        }
    }
    let mut patience = Patience::new(false);
    let mut now = start;
    let mut waits = Vec::new();
    while let Some(wait) = patience.after(now, &failure(NotSent, None), 1.0) {
        now += wait;
        waits.push(wait.as_secs());
    }
    assert_eq!(waits[..7], [1, 2, 4, 8, 16, 30, 30]);
    assert!((540..600).contains(&(now - start).as_secs()), "{:?}", now - start);
    // What the hub asks for is waited for at the least.
    let asked = Some(Duration::from_secs(7));
    let wait = |random| Patience::new(false).after(start, &failure(Throttled, asked), random);
    assert_eq!((wait(0.0), wait(1.0)), (asked, Some(Duration::from_millis(7250))));
}

#[test]
fn every_failure_has_its_class() {
    let transport = |problem| ServiceError::Transport { host: "h".into(), problem };
    let hub = |code| ServiceError::Hub(HubError::new(code, "said"));
    use FailureKind::{Lost, NotSent, Refused, Throttled};
    for (error, kind, class) in [
        (hub(ErrorCode::DeviceNotOnline), Refused, FailureClass::Offline),
        (hub(ErrorCode::GatewayTimeout), FailureKind::Broken, FailureClass::Timeout),
        (hub(ErrorCode::ThrottlingException), Throttled, FailureClass::Throttled),
        (hub(ErrorCode::DeviceNotFound), Refused, FailureClass::Missing),
        (hub(ErrorCode::MessageTooLarge), Refused, FailureClass::Refused),
        (transport(Problem::TimedOut), Lost, FailureClass::Timeout),
        (transport(Problem::TimedOut), NotSent, FailureClass::Fault),
        (transport(Problem::Refused), NotSent, FailureClass::Fault),
        (transport(Problem::Other { detail: "reset".into() }), Lost, FailureClass::Fault),
    ] {
        let found = hub_error(&Failure { error, kind, retry_after: None });
        assert_eq!(FailureClass::of_error(found.code), class, "{found}");
        assert_eq!(found.message.contains("perhaps been reached"), kind == Lost, "{found}");
    }
}

#[test]
fn selections_are_queries_that_ask_for_no_more_than_is_wanted() {
    for (condition, with_tags, expected) in [
        ("*", false, "SELECT deviceId FROM devices"),
        ("tags.site = 'A'", true, "SELECT deviceId, tags FROM devices WHERE tags.site = 'A'"),
        ("FROM devices.modules", false, "SELECT deviceId, moduleId FROM devices.modules"),
        (
            "FROM devices.modules WHERE moduleId = 'm'",
            true,
            "SELECT deviceId, moduleId, tags FROM devices.modules WHERE moduleId = 'm'",
        ),
    ] {
        let parsed = Condition::parse_job(condition).expect(condition);
        let query = selecting(&parsed, with_tags);
        assert_eq!(query, expected);
        assert_eq!(Query::parse(&query).expect("a query").condition(), &parsed);
    }
}

#[test]
fn devices_are_named_in_as_few_queries_as_hold_them() {
    let few = addresses(&["door-2", "it's", "door-2/m", "door-1", "door-2/n"]);
    let devices = Naming::twins(Source::Devices).queries(&few);
    assert_eq!(devices, [r"SELECT * FROM devices WHERE deviceId IN ['door-1','door-2','it\'s']"]);
    let modules = Naming::twins(Source::Modules).queries(&few);
    assert_eq!(modules, ["SELECT * FROM devices.modules WHERE deviceId IN ['door-2']"]);
    assert!(Naming::twins(Source::Devices).queries(&[]).is_empty());

    let many: Vec<Address> = (0..2000).map(|n| Address::parse(&format!("door-{n:04}")).expect("an id")).collect();
    let long = format!("tags.site = '{}'", "A".repeat(MAX_QUERY / 2));
    for (condition, with_tags, has_condition, begin) in [
        ("*", false, true, "SELECT deviceId FROM devices WHERE deviceId IN ["),
        ("tags.site = 'A'", true, true, "SELECT deviceId, tags FROM devices WHERE deviceId IN ["),
        (long.as_str(), true, false, "SELECT * FROM devices WHERE deviceId IN ["),
    ] {
        let condition = Condition::parse_job(condition).expect("a condition");
        let naming = Naming::selecting(&condition, with_tags);
        assert_eq!(naming.has_condition, has_condition);
        let queries = naming.queries(&many);
        assert_eq!(queries.len(), 3);
        let mut count = 0;
        for query in &queries {
            assert!(query.len() <= MAX_QUERY && query.starts_with(begin), "{}: {query}", query.len());
            let parsed = Query::parse(query).expect("a query");
            let twin = |id: &Address| json!({"deviceId": id.to_string(), "tags": {"site": "A"}});
            count += many.iter().filter(|id| parsed.condition().matches(&twin(id))).count();
        }
        assert_eq!(count, many.len());
    }
    let condition = Condition::parse_job("FROM devices.modules WHERE moduleId = 'm' OR tags.a = 1").expect("it");
    let expected = "SELECT deviceId, moduleId FROM devices.modules WHERE deviceId IN ['door-2'] AND (moduleId = 'm' OR \
                    tags.a = 1)";
    assert_eq!(Naming::selecting(&condition, false).queries(&few), [expected]);
}

#[tokio::test]
async fn devices_are_selected_page_by_page_whatever_the_hub_throttles() {
    let hub = ScriptedHub::start(vec![
        answer(429, "retry-after: 0\r\n", ""),
        answer(200, "x-ms-continuation: next\r\n", r#"[{"deviceId":"a","tags":{"site":"A"}}]"#),
        answer(200, "", r#"[{"deviceId":"b","tags":{"site":"A"}},{"deviceId":"c","tags":{}}]"#),
        answer(200, "", r#"[{"deviceId":"a","moduleId":"m"}]"#),
        answer(200, "", r#"[{"id":"a"}]"#),
        answer(
            400,
            "",
            &HubError::new(ErrorCode::ArgumentInvalid, "no").envelope("t", DateTime::UNIX_EPOCH).to_string(),
        ),
    ])
    .await;
    let fleet = RestFleet::new(hub.client(), None, 4);
    let selection = |condition, labels: &[&str]| Selection {
        condition: Condition::parse_job(condition).expect(condition),
        among: None,
        labels: labels.iter().map(|label| TagPath::parse(label).expect(label)).collect(),
    };
    let devices = fleet.select(&selection("*", &["tags.site"])).await.expect("devices");
    let found: Vec<_> = devices.iter().map(|d| (d.address.to_string(), d.labels[0].as_deref())).collect();
    assert_eq!(found, [("a".to_owned(), Some("A")), ("b".to_owned(), Some("A")), ("c".to_owned(), None)]);
    let modules = fleet.select(&selection("FROM devices.modules", &[])).await.expect("modules");
    assert_eq!(modules.iter().map(|m| m.address.to_string()).collect::<Vec<_>>(), ["a/m"]);
    let odd = fleet.select(&selection("*", &[])).await.expect_err("a row of nobody");
    assert_eq!(odd.code, ErrorCode::ServerError);
    assert_eq!(fleet.select(&selection("*", &[])).await.expect_err("refused").code, ErrorCode::ArgumentInvalid);
    let requests = hub.requests.await.expect("requests");
    assert!(requests[1].ends_with(r#"{"query":"SELECT deviceId, tags FROM devices"}"#), "{}", requests[1]);
    assert!(requests[2].contains("x-ms-continuation: next\r\n") && requests[2].contains("max-item-count: 1000\r\n"));
}

#[tokio::test]
async fn a_method_is_not_called_twice_unless_it_was_certainly_not_called() {
    let hub = ScriptedHub::start(vec![
        answer(429, "retry-after: 0\r\n", ""),
        answer(200, "", r#"{"status":200,"payload":1}"#),
        answer(503, "retry-after: 0\r\n", ""),
        // The connection ends without an answer.
        String::new(),
        answer(503, "retry-after: 0\r\n", ""),
        answer(200, "", "{}"),
    ])
    .await;
    let fleet = RestFleet::new(hub.client(), Sku::new(Tier::S1, 1).ok(), 4);
    let [device] = addresses(&["d1"]).try_into().expect("one");
    let answered = fleet.call_method(&device, &method()).await.expect("an answer");
    assert_eq!(answered.status, 200);
    for _ in 0..2 {
        let lost = fleet.call_method(&device, &method()).await.expect_err("no answer");
        assert_eq!(lost.code, ErrorCode::ServiceUnavailable, "{lost}");
    }
    fleet.patch_twin(&device, &TwinUpdate::default()).await.expect("repeated");
    assert_eq!(hub.requests.await.expect("requests").len(), 6);
}

#[tokio::test]
async fn pins_and_conditions_are_looked_at_in_twins() {
    let twin = json!({"deviceId": "d", "moduleId": "m", "properties": {
        "desired": {"latch": {"plugins": {"door": "2.0.0"}}}, "reported": {}}});
    let mut other = twin.clone();
    other["moduleId"] = json!("n");
    let devices = answer(200, "", r#"[{"deviceId":"d"}]"#);
    let modules = answer(200, "", &json!([twin, other]).to_string());
    let hub = ScriptedHub::start(vec![devices.clone(), modules.clone(), devices, modules.clone(), modules]).await;
    let fleet = RestFleet::new(hub.client(), None, 4);
    let wanted = addresses(&["d", "d/m", "gone"]);
    let states = fleet.pin_states("door", &wanted).await.expect("states");
    assert_eq!(states.len(), 2, "{states:?}");
    assert_eq!(states[&wanted[0]], PinState::default());
    assert_eq!(states[&wanted[1]], PinState::of_twin(&twin, "door"));
    let pinned = Condition::parse_job("properties.desired.latch.plugins.door = '2.0.0'").expect("a condition");
    let matching = fleet.matching(&pinned, &wanted).await.expect("those that match");
    assert_eq!(matching.into_iter().collect::<Vec<_>>(), wanted[1..2]);
    let condition = Condition::parse_job("FROM devices.modules").expect("a condition");
    let among = Selection { condition, among: Some(wanted.clone()), labels: Vec::new() };
    let selected = fleet.select(&among).await.expect("those that there are");
    assert_eq!(selected.into_iter().map(|selected| selected.address).collect::<Vec<_>>(), wanted[1..2]);
}

#[tokio::test]
async fn a_survey_tells_who_is_connected_disabled_and_meets_what() {
    let row = |id: &str, state: &str, status: &str, ring: &str| json!({"deviceId": id, "connectionState": state, "status": status, "tags": {"ring": ring}});
    let first = json!([row("a", "Connected", "enabled", "canary")]).to_string();
    let second = json!([row("b", "Disconnected", "disabled", "else")]).to_string();
    let modules = json!([{"deviceId": "a", "moduleId": "m", "connectionState": "Connected"},
        {"deviceId": "a", "moduleId": "n", "connectionState": "Connected"}]);
    let hub = ScriptedHub::start(vec![
        answer(200, "x-ms-continuation: next\r\n", &first),
        answer(200, "", &second),
        answer(200, "", &modules.to_string()),
    ])
    .await;
    let fleet = RestFleet::new(hub.client(), None, 4);
    let condition = |text| Condition::parse_job(text).expect(text);
    let marks =
        vec![condition("tags.pilot = true"), condition("tags.ring = 'canary'"), condition("FROM devices.modules")];
    let survey = async |survey: Survey| {
        let (pages, mut taken) = mpsc::channel(4);
        fleet.survey(&survey, &pages).await.expect("a survey");
        drop(pages);
        let mut surveyed = Vec::new();
        while let Some(page) = taken.recv().await {
            surveyed.extend(page);
        }
        surveyed
    };
    let found = survey(Survey { condition: Condition::all(), among: None, marks }).await;
    let standing = |is_connected, is_disabled| job_engine::Standing {
        is_connected: Some(is_connected),
        is_listening: None,
        is_disabled: Some(is_disabled),
    };
    let found: Vec<_> = found.iter().map(|one| (one.address.to_string(), one.marks, one.standing)).collect();
    assert_eq!(found, [("a".to_owned(), 0b10, standing(true, false)), ("b".to_owned(), 0, standing(false, true))]);
    let among = Some(addresses(&["a", "a/m", "gone/m"]));
    let found = survey(Survey { condition: condition("FROM devices.modules"), among, marks: Vec::new() }).await;
    let found: Vec<_> = found.iter().map(|one| (one.address.to_string(), one.standing)).collect();
    let module = job_engine::Standing { is_disabled: None, ..standing(true, false) };
    assert_eq!(found, [("a/m".to_owned(), module)]);
    let requests = hub.requests.await.expect("requests");
    assert!(requests[0].ends_with(r#"{"query":"SELECT * FROM devices"}"#), "{}", requests[0]);
    assert!(
        requests[2]
            .contains("SELECT deviceId, moduleId, connectionState FROM devices.modules WHERE deviceId IN ['a','gone']"),
        "{}",
        requests[2]
    );
}
