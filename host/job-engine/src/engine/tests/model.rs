//! The engine against a reference model, with a clock of its own, over random steps: what back ends, devices, the disk and
//! the end of the process do, in any order.
//!
//! After each step the model says whether what the engine has decided is allowed, and whether anything is missing that
//! must be decided by now; in between, whether the engine slept through something. Counts are compared with a recount,
//! rows with those of SQLite. `LATCH_MODEL_STEPS` sets how many steps there are, `LATCH_MODEL_SEED` the first run's seed.

mod ledger;
mod reference;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use durable_store::sql::Connection;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{
    AbortRule, AnswerRule, EndRule, EndThen, GrowAfter, GrowingRate, InDoubt, JobPolicy, MaintenanceWindow, OfflineEnd,
    OfflineRule, OnAbort, Priority, Rate, ReportRule, RetryRule, Stage, SuccessRule, WindowZone,
};
use iothub_protocol::job::steps::{Otherwise, Step, StepCondition, TwinWait};
use iothub_protocol::job::targets::JobTargets;
use iothub_protocol::job::{HoldCause, JobRequest, TwinUpdate};
use iothub_protocol::method::MethodResponse;
use iothub_protocol::plugin_report::pin;
use serde_json::json;

use super::policy::state;
use super::*;
use crate::fleet::Selected;
use crate::journal;
use crate::testing::{at, database, device, job_id, method_job, rows, selected, twin_job};
use ledger::Ledger;
use reference::{Call, Model};

/// Random steps, at the least.
const STEPS: usize = 1_000_000;
/// Steps of one run, from an empty journal on.
const STEPS_OF_A_RUN: usize = 200;
/// One run of so many is written to SQLite as well.
const WRITTEN: usize = 40;
/// Jobs of a run, and those that have not ended at a time.
const MOST_JOBS: usize = 12;
const MOST_UNFINISHED: usize = 5;
/// Kinds of decisions; each is seen at least once in a thousand steps.
const KINDS: usize = 19;
/// Windows, in seconds. The shortest is longer than all pauses and soaks of a policy.
const SHORTEST_WINDOW: u32 = 24;
const LONGEST_WINDOW: u32 = 50;
/// Maintenance windows open every ten seconds, for so many.
const OPEN: u32 = 4;

type Check = Result<(), String>;
type Act = fn(&mut Trial, &mut Dice) -> Check;

/// Else the check has failed.
macro_rules! hold {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
use hold;

fn seconds(seconds: u32) -> TimeDelta {
    TimeDelta::seconds(seconds.into())
}

/// What can happen, and how often. A new command of the engine is one line here.
const COMMANDS: &[(u64, Act)] = &[
    (6, Trial::create),
    (1, Trial::cancel),
    (2, Trial::pause),
    (3, Trial::resume),
    (2, Trial::approve),
    (14, Trial::select),
    (30, Trial::answer),
    (2, Trial::answer_again),
    (2, Trial::answer_late),
    (5, Trial::change),
    (1, Trial::change_all),
    (6, Trial::gather),
    (30, Trial::commit),
    (12, Trial::sleep),
    (2, Trial::oversleep),
    (5, Trial::arrive),
    (1, Trial::arrive_all),
    (5, Trial::report),
    (8, Trial::see),
    (5, Trial::match_twins),
    (4, Trial::unpin),
    (1, Trial::drain),
    (1, Trial::crash),
];

/// A source of numbers that gives the same ones for the same seed: SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn within(&mut self, range: RangeInclusive<u32>) -> u32 {
        range.start() + self.below((range.end() - range.start() + 1) as usize) as u32
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

/// An engine, what was recorded of it, and a world that answers when it likes to.
struct Trial {
    engine: Engine,
    model: Model,
    now: DateTime<Utc>,
    limits: Limits,
    fleet: usize,
    recorded: Ledger,
    /// In some runs.
    journal: Option<Connection>,
    /// Records that are being written, the oldest first.
    writes: VecDeque<Record>,
    selections: Vec<(JobId, Selection)>,
    gatherings: Vec<(JobId, Selection)>,
    /// And whether it is a method's.
    calls: Vec<(Call, bool)>,
    looks: Vec<(JobId, Vec<Address>)>,
    matches: Vec<(JobId, u32, Vec<Address>)>,
    unpins: Vec<JobId>,
    /// Calls that were answered, in any life.
    answered: Vec<(Call, bool)>,
    reported: BTreeMap<Address, &'static str>,
    /// How often what was decided, by kind.
    decided: BTreeMap<&'static str, usize>,
    /// For people, once a run has failed.
    log: Option<String>,
}

impl Trial {
    fn new(dice: &mut Dice, is_written: bool) -> Trial {
        let limits = Limits {
            in_flight_per_job: 1 + dice.below(3),
            in_flight: 1 + dice.below(5),
            concurrent_jobs: 1 + dice.below(3),
        };
        Trial {
            engine: Engine::new(limits, at(0), Vec::new()),
            model: Model::new(limits, at(0), Ledger::default()),
            now: at(0),
            limits,
            fleet: 1 + dice.below(6),
            recorded: Ledger::default(),
            journal: is_written.then(database),
            writes: VecDeque::new(),
            selections: Vec::new(),
            gatherings: Vec::new(),
            calls: Vec::new(),
            looks: Vec::new(),
            matches: Vec::new(),
            unpins: Vec::new(),
            answered: Vec::new(),
            reported: BTreeMap::new(),
            decided: BTreeMap::new(),
            log: None,
        }
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            writeln!(log, "{:9.3} {}", (now - at(0)).as_seconds_f64(), what()).expect("a string takes it");
        }
    }

    fn hand(&mut self, input: Input) -> Check {
        self.say(|| match &input {
            Input::Recorded(record) => format!("> Recorded up to {:?}", record.changes.last()),
            input => format!("> {input:?}"),
        });
        self.model.hear(&input);
        self.engine.handle(self.now, input);
        self.settle()
    }

    /// Take what the engine has decided and wants done, and have the model look at it.
    fn settle(&mut self) -> Check {
        if let Some(record) = self.engine.take_record() {
            for change in &record.changes {
                self.say(|| format!("  {}: {:?}", change.job, change.what));
                self.model.decide(change).map_err(|text| format!("{change:?}: {text}"))?;
                *self.decided.entry(kind(&change.what)).or_default() += 1;
            }
            for (id, statistics) in &record.statistics {
                let recount = self.model.decided.jobs[id].statistics();
                hold!(*statistics == recount, "{id} counts {statistics:?}, a recount is {recount:?}");
            }
            self.writes.push_back(record);
        }
        while let Some(output) = self.engine.poll() {
            self.say(|| format!("< {output:?}"));
            match output {
                Output::Select { job, selection, .. } => {
                    self.model.selects(&job)?;
                    self.selections.push((job, selection));
                }
                Output::Gather { job, selection, .. } => {
                    self.model.gathers(&job, &self.recorded)?;
                    self.gatherings.push((job, selection));
                }
                Output::Send { job, device, attempt, action } => {
                    let call = Call { job, device, attempt };
                    self.model.sends(&call, &self.recorded)?;
                    self.calls.push((call, matches!(*action, JobAction::Method(_))));
                }
                Output::Match { job, step, devices, .. } => self.matches.push((job, step, devices)),
                Output::Look { job, devices, .. } => self.looks.push((job, devices)),
                Output::Unpin { job, device, .. } => {
                    self.model.unpins(&job, &device)?;
                    self.unpins.push(job);
                }
            }
        }
        let unfinished: usize = self.engine.in_flight();
        hold!(self.model.is_draining || unfinished == self.model.in_flight(), "{unfinished} calls are in flight");
        self.model.rest(&self.recorded)
    }

    fn create(&mut self, dice: &mut Dice) -> Check {
        if self.recorded.order.len() == MOST_JOBS || self.recorded.unfinished().count() >= MOST_UNFINISHED {
            return Ok(());
        }
        let number = self.recorded.order.len();
        self.create_job(JobRequest { job_id: job_id(&format!("j{number}")), ..request(dice, self.now, self.fleet) })
    }

    fn create_job(&mut self, request: JobRequest) -> Check {
        let start = request.start_time.unwrap_or(self.now);
        let mut saved = SavedJob::new(request, start);
        if let Some(journal) = &mut self.journal {
            let tx = journal.transaction().expect("a transaction");
            saved = journal::insert(&tx, saved.request, self.now).expect("an insert").expect("a new id");
            tx.commit().expect("a commit");
        }
        self.recorded.create(&saved);
        self.model.decided.create(&saved);
        self.hand(Input::Created(Box::new(saved)))
    }

    fn cancel(&mut self, dice: &mut Dice) -> Check {
        self.command(dice, Command::Cancel)
    }

    fn pause(&mut self, dice: &mut Dice) -> Check {
        self.command(dice, Command::Pause { reason: "so".to_owned() })
    }

    fn resume(&mut self, dice: &mut Dice) -> Check {
        self.command(dice, Command::Resume)
    }

    fn approve(&mut self, dice: &mut Dice) -> Check {
        let stage = dice.one(&[None, None, Some(1), Some(2)]);
        self.command(dice, Command::Approve { stage })
    }

    fn command(&mut self, dice: &mut Dice, command: Command) -> Check {
        match self.recorded.order.is_empty() {
            true => Ok(()),
            false => self.command_job(dice.one(&self.recorded.order), command),
        }
    }

    fn command_job(&mut self, id: JobId, command: Command) -> Check {
        self.say(|| format!("> {id}: {command:?}"));
        let had_ended = self.model.decided.jobs[&id].ended.is_some();
        self.model.hear_command(&id, &command);
        let obedience = self.engine.command(self.now, &id, command.clone());
        let is_gone = matches!(obedience, Obedience::Finished | Obedience::Unknown);
        hold!(is_gone == had_ended, "{id} had ended: {had_ended}, {obedience:?}");
        self.settle()?;
        let job = &self.model.decided.jobs[&id];
        let is_obeyed = job.ended.is_some()
            || match command {
                Command::Cancel => job.cancelling && job.hold.is_none(),
                Command::Pause { .. } => job.hold.as_ref().is_some_and(|hold| hold.cause != HoldCause::Approval),
                Command::Resume | Command::Approve { .. } => true,
            };
        hold!(is_obeyed || matches!(obedience, Obedience::Refused(_)), "{id} did not obey: {job:?}");
        Ok(())
    }

    fn select(&mut self, dice: &mut Dice) -> Check {
        let Some((job, selection)) = take(&mut self.selections, dice) else { return Ok(()) };
        let result = match dice.percent(5) {
            true => Err(HubError::new(ErrorCode::ServiceUnavailable, "not now")),
            false => {
                let mut devices = selected(self.fleet, &selection);
                if self.recorded.jobs[&job].request.is_continuous() {
                    devices.retain(|_| dice.percent(50));
                }
                // A device can be found twice, since it can change during a search.
                let twice: Vec<Selected> = devices.iter().filter(|_| dice.percent(10)).cloned().collect();
                devices.extend(twice);
                let stages = self.stages_by_condition(&job, &devices, dice);
                Ok(Found { devices, excluded: dice.below(3) as u64, stages })
            }
        };
        self.hand(Input::Selected { job, result })
    }

    /// Of each device the stage by condition that it is in.
    fn stages_by_condition(&self, job: &JobId, devices: &[Selected], dice: &mut Dice) -> Vec<u32> {
        let policy = self.model.decided.jobs[job].policy();
        let count = policy.map_or(0, |policy| policy.stages.iter().filter(|stage| stage.condition.is_some()).count());
        if count == 0 {
            return Vec::new();
        }
        let seed = dice.next();
        // The same for a device that is found twice.
        let place = |device: &Selected| Dice(seed ^ device.address.rollout_place().1).below(count + 1) as u32;
        devices.iter().map(place).collect()
    }

    fn change(&mut self, dice: &mut Dice) -> Check {
        let changed = (0..self.fleet).map(device).filter(|_| dice.percent(30)).collect();
        self.hand(Input::Changed(changed))
    }

    fn change_all(&mut self, _: &mut Dice) -> Check {
        self.hand(Input::ManyChanged)
    }

    /// Some have come, of those that are not in the job's rows on the disk.
    fn gather(&mut self, dice: &mut Dice) -> Check {
        let Some((job, selection)) = take(&mut self.gatherings, dice) else { return Ok(()) };
        let result = match dice.percent(10) {
            true => Err(HubError::new(ErrorCode::ServiceUnavailable, "not now")),
            false => {
                let mut devices = selected(self.fleet, &selection);
                devices.retain(|one| !self.recorded.jobs[&job].rows.contains_key(&one.address) && dice.percent(50));
                let twice: Vec<Selected> = devices.iter().filter(|_| dice.percent(10)).cloned().collect();
                devices.extend(twice);
                let stages = self.stages_by_condition(&job, &devices, dice);
                Ok(Found { devices, excluded: 0, stages })
            }
        };
        self.hand(Input::Gathered { job, result })
    }

    fn answer(&mut self, dice: &mut Dice) -> Check {
        let Some((call, is_method)) = take(&mut self.calls, dice) else { return Ok(()) };
        self.answered.push((call.clone(), is_method));
        self.answer_call(call, is_method, dice)
    }

    /// An answer comes twice, or after the end of the process that had asked.
    fn answer_again(&mut self, dice: &mut Dice) -> Check {
        if self.answered.is_empty() {
            return Ok(());
        }
        let (call, is_method) = dice.one(&self.answered);
        self.answer_call(call, is_method, dice)
    }

    /// The hub passes on an answer that came after its call's time-out.
    fn answer_late(&mut self, dice: &mut Dice) -> Check {
        if self.answered.is_empty() {
            return Ok(());
        }
        let (Call { job, device, attempt }, _) = dice.one(&self.answered);
        let outcome = DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!("late") });
        self.hand(Input::Late { job, device, attempt, outcome })
    }

    fn answer_call(&mut self, call: Call, is_method: bool, dice: &mut Dice) -> Check {
        let error = |code: ErrorCode| Err(HubError::new(code, "so it is"));
        let result = match dice.below(16) {
            0..=6 if !is_method => Ok(DeviceJobOutcome::TwinUpdated),
            7 if !is_method => error(ErrorCode::MessageTooLarge),
            0..=5 => Ok(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!(null) })),
            6 | 7 => Ok(DeviceJobOutcome::Method(MethodResponse { status: 500, payload: json!({"stuck": true}) })),
            8..=10 => error(ErrorCode::DeviceNotOnline),
            11 | 12 => error(ErrorCode::GatewayTimeout),
            13 => error(ErrorCode::ThrottlingException),
            14 => error(ErrorCode::DeviceNotFound),
            _ => error(ErrorCode::ServerError),
        };
        let Call { job, device, attempt } = call;
        self.hand(Input::Outcome { job, device, attempt, result })
    }

    /// Some of what is being written is on the disk.
    fn commit(&mut self, dice: &mut Dice) -> Check {
        for _ in 0..1 + dice.below(3) {
            let Some(record) = self.writes.pop_front() else { break };
            for change in &record.changes {
                self.recorded.apply(change)?;
            }
            self.write(&record)?;
            self.hand(Input::Recorded(Arc::new(record)))?;
        }
        Ok(())
    }

    /// As it is done in a hub, where there is a journal.
    fn write(&mut self, record: &Record) -> Check {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let tx = journal.transaction().expect("a transaction");
        journal::record(&tx, record).expect("a record");
        tx.commit().expect("a commit");
        for (id, statistics) in &record.statistics {
            let (found, expected) = (rows(journal, id), self.recorded.device_jobs(id));
            hold!(found == expected, "{id}: the journal has {found:#?}, and not {expected:#?}");
            let job = stored(journal, id);
            let row = &self.recorded.jobs[id];
            let expected = (row.status, row.begun.map(|_| *statistics), row.stage, row.ended, &row.reason);
            let found = (job.status, job.statistics, job.stage, job.end_time, &job.failure_reason);
            hold!(found == expected, "{id}: the journal has {found:?}, and not {expected:?}");
        }
        Ok(())
    }

    /// Time passes, and the engine is called when it said. It must not have been needed before.
    fn sleep(&mut self, dice: &mut Dice) -> Check {
        let most = dice.one(&[20, 200, 1000, 4000]);
        let until = self.now + TimeDelta::milliseconds(1 + dice.below(most) as i64);
        self.sleep_until(until)
    }

    fn sleep_until(&mut self, until: DateTime<Utc>) -> Check {
        while let Some(deadline) = self.engine.deadline().map(whole_millis).filter(|deadline| *deadline <= until) {
            self.asleep(deadline - TimeDelta::milliseconds(1))?;
            self.wake(deadline.max(self.now))?;
        }
        self.asleep(until)?;
        self.wake(until)
    }

    fn asleep(&mut self, until: DateTime<Utc>) -> Check {
        self.model.now = until.max(self.now);
        self.model.rest(&self.recorded).map_err(|text| format!("slept until {until}: {text}"))
    }

    fn wake(&mut self, now: DateTime<Utc>) -> Check {
        (self.now, self.model.now) = (now, now);
        self.hand(Input::Tick)
    }

    /// Much time passes, as if the machine had been suspended.
    fn oversleep(&mut self, dice: &mut Dice) -> Check {
        self.now += TimeDelta::milliseconds(1 + dice.below(30_000) as i64);
        self.model.now = self.now;
        // What comes first need not be the clock.
        if dice.percent(50) && !self.calls.is_empty() { self.answer(dice) } else { self.hand(Input::Tick) }
    }

    fn arrive(&mut self, dice: &mut Dice) -> Check {
        self.hand(Input::Arrived(device(dice.below(self.fleet))))
    }

    fn arrive_all(&mut self, _: &mut Dice) -> Check {
        self.hand(Input::ManyArrived)
    }

    fn report(&mut self, dice: &mut Dice) -> Check {
        let status = dice.one(&["active", "active", "failing", "quarantined", "else"]);
        self.reported.insert(device(dice.below(self.fleet)), status);
        Ok(())
    }

    fn see(&mut self, dice: &mut Dice) -> Check {
        let Some((job, devices)) = take(&mut self.looks, dice) else { return Ok(()) };
        let result = match dice.percent(10) {
            true => Err(HubError::new(ErrorCode::ServiceUnavailable, "not now")),
            false => {
                let there = devices.iter().filter(|_| !dice.percent(3));
                Ok(there.map(|device| (device.clone(), state(self.reported.get(device)))).collect())
            }
        };
        self.hand(Input::Seen { job, devices, result })
    }

    /// Some twins are as the next step wants them.
    fn match_twins(&mut self, dice: &mut Dice) -> Check {
        let Some((job, step, devices)) = take(&mut self.matches, dice) else { return Ok(()) };
        let result = match dice.percent(10) {
            true => Err(HubError::new(ErrorCode::ServiceUnavailable, "not now")),
            false => Ok(devices.iter().filter(|_| dice.percent(40)).cloned().collect()),
        };
        self.hand(Input::Matched { job, step, devices, result })
    }

    fn unpin(&mut self, dice: &mut Dice) -> Check {
        let Some(job) = take(&mut self.unpins, dice) else { return Ok(()) };
        let result = if dice.percent(20) { Err(HubError::new(ErrorCode::DeviceNotFound, "gone")) } else { Ok(()) };
        self.hand(Input::Unpinned { job, result })
    }

    /// The process is asked to end.
    fn drain(&mut self, _: &mut Dice) -> Check {
        self.say(|| "> drain".to_owned());
        self.engine.drain();
        self.model.is_draining = true;
        self.settle()
    }

    /// As `kill -9` does: what was not recorded, and every call, is lost.
    fn crash(&mut self, dice: &mut Dice) -> Check {
        self.say(|| "> crash".to_owned());
        self.writes.clear();
        self.selections.clear();
        self.gatherings.clear();
        self.looks.clear();
        self.matches.clear();
        self.unpins.clear();
        self.answered.append(&mut self.calls);
        self.now += TimeDelta::milliseconds(dice.one(&[0, 1, 1000, 20_000]));
        let saved = self.recorded.saved();
        if let Some(journal) = &self.journal {
            let found = journal::unfinished(journal).expect("the jobs");
            hold!(found == saved, "the journal has {found:#?}, and not {saved:#?}");
        }
        self.model = Model::new(self.limits, self.now, self.recorded.clone().read_again());
        self.engine = Engine::new(self.limits, self.now, saved);
        self.settle()
    }

    /// The world answers at once, until the last window is over; then every job has ended.
    fn wind_down(&mut self, dice: &mut Dice) -> Check {
        if self.model.is_draining {
            self.crash(dice)?;
        }
        let end = self.now + seconds(4 * LONGEST_WINDOW);
        while self.recorded.unfinished().count() > 0 {
            hold!(self.now < end, "jobs do not end: {:?}", self.recorded.unfinished().collect::<Vec<_>>());
            for _ in 0..3 {
                self.commit(dice)?;
                self.select(dice)?;
                self.gather(dice)?;
                self.answer(dice)?;
                self.see(dice)?;
                self.match_twins(dice)?;
                self.unpin(dice)?;
            }
            for id in self.recorded.order.clone() {
                let hold = self.model.decided.jobs[&id].hold.clone();
                match hold.map(|hold| hold.cause) {
                    Some(HoldCause::Approval) => self.command_job(id, Command::Approve { stage: None })?,
                    Some(HoldCause::Operator | HoldCause::Rule) => self.command_job(id, Command::Resume)?,
                    None => {}
                }
            }
            let is_idle = self.writes.is_empty() && self.selections.is_empty() && self.calls.is_empty();
            let pause = if is_idle && self.unpins.is_empty() { 2000 } else { 10 };
            self.sleep_until(self.now + TimeDelta::milliseconds(pause))?;
        }
        let left = (self.engine.deadline(), self.engine.in_flight());
        hold!(left == (None, self.calls.len()), "with no job left: {left:?}");
        Ok(())
    }
}

/// Any of them.
fn take<T>(from: &mut Vec<T>, dice: &mut Dice) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(dice.below(from.len())))
}

/// The journal keeps whole milliseconds, and a sleep is never too short.
fn whole_millis(time: DateTime<Utc>) -> DateTime<Utc> {
    let below = DateTime::from_timestamp_millis(time.timestamp_millis()).unwrap_or(time);
    if below < time { below + TimeDelta::milliseconds(1) } else { below }
}

fn request(dice: &mut Dice, now: DateTime<Utc>, fleet: usize) -> JobRequest {
    let some: Vec<String> = (0..fleet).filter(|_| dice.percent(60)).map(|one| format!("'{}'", device(one))).collect();
    let some =
        if some.is_empty() { "deviceId = 'nobody'".to_owned() } else { format!("deviceId IN [{}]", some.join(", ")) };
    let request = JobRequest {
        query_condition: dice.one(&["*".to_owned(), "*".to_owned(), some.clone(), some, "no condition".to_owned()]),
        start_time: dice.percent(40).then(|| now + TimeDelta::seconds(dice.below(5) as i64)),
        max_execution_time_in_seconds: dice.within(SHORTEST_WINDOW..=LONGEST_WINDOW),
        targets: dice.percent(25).then(|| JobTargets { continuous: true, ..JobTargets::default() }),
        ..if dice.percent(60) { method_job("j") } else { twin_job("j") }
    };
    let then = if dice.percent(25) { steps(dice, &request.action) } else { Vec::new() };
    let request = JobRequest { then, ..request };
    if dice.percent(35) {
        return request;
    }
    let is_method = matches!(request.action, JobAction::Method(_));
    let mut policy = any_policy(dice, is_method, now);
    if is_method || !request.then.is_empty() || dice.percent(50) {
        return JobRequest { policy: Some(policy), ..request };
    }
    let (soak_in_seconds, timeout_in_seconds) = (dice.within(0..=2), dice.within(1..=6));
    policy.succeed =
        Some(SuccessRule::Report(ReportRule { plugin: "lock-door".into(), soak_in_seconds, timeout_in_seconds }));
    policy.on_abort = dice.one(&[OnAbort::Keep, OnAbort::Unpin, OnAbort::Pause]);
    let action = JobAction::UpdateTwin(TwinUpdate { tags: None, desired: Some(pin("lock-door", "2.0.0")) });
    JobRequest { action, policy: Some(policy), ..request }
}

fn steps(dice: &mut Dice, first: &JobAction) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for _ in 0..dice.within(1..=2) {
        let before = steps.last().map_or(first, |step| &step.action);
        let is_answered = matches!(before, JobAction::Method(_));
        let answer = (is_answered && dice.percent(40)).then(|| AnswerRule { statuses: vec![[200, 299]] });
        let condition = "properties.reported.locked = true".to_owned();
        let twin = dice.percent(40).then(|| TwinWait { condition, within_in_seconds: dice.within(0..=5) });
        let when = StepCondition { answer, twin, otherwise: dice.one(&[Otherwise::Fail, Otherwise::Finish]) };
        let action = if dice.percent(50) { method_job("j").action } else { twin_job("j").action };
        steps.push(Step { action, when });
    }
    steps
}

fn any_policy(dice: &mut Dice, is_method: bool, now: DateTime<Utc>) -> JobPolicy {
    let mut policy = JobPolicy::default();
    let shares: &[u8] = dice.one(&[&[][..], &[], &[100], &[40, 100], &[20, 50, 100]]);
    policy.stages = shares.iter().map(|percent| stage(dice, *percent)).collect();
    if !shares.is_empty() && dice.percent(30) {
        let by_condition = (0..dice.within(1..=2)).map(|ring| Stage {
            percent: None,
            condition: Some(format!("tags.ring = {ring}")),
            ..stage(dice, 100)
        });
        policy.stages.splice(0..0, by_condition.collect::<Vec<_>>());
    }
    policy.rate = match dice.below(6) {
        0 => Some(Rate::Constant(dice.one(&[1, 3, 50]))),
        1 => {
            let grow_after = dice.one(&[GrowAfter::Started(1), GrowAfter::Started(2), GrowAfter::Succeeded(2)]);
            Some(Rate::Growing(GrowingRate { base: 1, factor: 2, maximum: 7, grow_after }))
        }
        _ => None,
    };
    let failures: [&[FailureClass]; 4] = [
        &[FailureClass::Timeout, FailureClass::Throttled],
        &[FailureClass::Timeout, FailureClass::Answer, FailureClass::Fault],
        &[FailureClass::Fault],
        &[FailureClass::Offline, FailureClass::Missing],
    ];
    policy.group_by = dice.percent(30).then(|| TagPath::parse("tags.building").expect("a tag"));
    for _ in 0..dice.below(3) {
        let on = if dice.percent(50) { Vec::new() } else { dice.one(&failures).to_vec() };
        let window_in_seconds = dice.percent(40).then(|| dice.within(1..=4));
        let minimum = dice.within(1..=3);
        let (failure_percent, per_group) = (dice.one(&[0, 30, 60]), policy.group_by.is_some() && dice.percent(50));
        policy.abort.push(AbortRule { failure_percent, on, minimum, window_in_seconds, per_group });
    }
    policy.on_abort = dice.one(&[OnAbort::Keep, OnAbort::Pause]);
    if is_method && dice.percent(40) {
        let (wait_in_seconds, then) = (dice.one(&[0, 3, 10]), dice.one(&[OfflineEnd::Fail, OfflineEnd::Skip]));
        policy.offline = OfflineRule { wait_in_seconds, then };
    }
    // A policy has one rule for the offline, at most.
    let rules = if policy.offline == OfflineRule::default() { 4 } else { 3 };
    for _ in 0..dice.below(3) {
        let backoff_in_seconds = dice.within(1..=2);
        policy.retry.push(RetryRule {
            on: failures[dice.below(rules)].to_vec(),
            retries: dice.within(1..=3),
            backoff_in_seconds,
            maximum_backoff_in_seconds: backoff_in_seconds + dice.within(0..=3),
        });
    }
    if is_method && dice.percent(30) {
        policy.succeed = Some(SuccessRule::Answer(AnswerRule { statuses: vec![[200, 299]] }));
    }
    if dice.percent(25) {
        // Open for the first seconds of each ten.
        let cron = "*/10 * * * * *".to_owned();
        let (duration_in_seconds, time_zone) = (OPEN, WindowZone::default());
        policy.windows.push(MaintenanceWindow { cron, duration_in_seconds, time_zone });
    }
    policy.device_timeout_in_seconds = dice.percent(25).then(|| dice.within(1..=8));
    policy.priority = dice.one(&[Priority::default(), Priority(2), Priority(9)]);
    policy.in_doubt = dice.one(&[InDoubt::Again, InDoubt::Again, InDoubt::Fail]);
    if dice.percent(40) {
        let then = dice.one(&[EndThen::Stop, EndThen::Stop, EndThen::Cancel, EndThen::Force]);
        let after = dice.within(1..=SHORTEST_WINDOW - 1);
        let (at, after_in_seconds) = match dice.percent(50) {
            true => (Some(now + seconds(after)), None),
            false => (None, Some(after)),
        };
        policy.end = Some(EndRule { at, after_in_seconds, then });
    }
    policy
}

fn stage(dice: &mut Dice, percent: u8) -> Stage {
    Stage {
        success_threshold: dice.one(&[0, 50, 90, 100]),
        minimum_sample: dice.one(&[None, None, Some(1), Some(2)]),
        pause_in_seconds: dice.one(&[0, 0, 1, 3]),
        approval: dice.percent(15),
        ..Stage::new(percent)
    }
}

/// Each step is what its seed makes of the moment, so that a run can go without some of its steps.
///
/// # Errors
/// What is wrong, and the log.
fn run(seed: u64, steps: &[u64], is_written: bool, log: Option<String>) -> Result<Trial, (String, String)> {
    let mut trial = Trial { log, ..Trial::new(&mut Dice(seed), is_written) };
    let all: u64 = COMMANDS.iter().map(|(weight, _)| weight).sum();
    let mut take_steps = || {
        for step in steps {
            let mut dice = Dice(*step);
            // A process that was asked to end does so soon.
            if trial.model.is_draining && dice.percent(20) {
                trial.crash(&mut dice)?;
            }
            let mut place = dice.next() % all;
            let command = COMMANDS.iter().find(|(weight, _)| {
                let is_it = place < *weight;
                place = place.wrapping_sub(*weight);
                is_it
            });
            command.map_or(Ok(()), |(_, command)| command(&mut trial, &mut dice))?;
        }
        trial.wind_down(&mut Dice(seed ^ 1))
    };
    match take_steps() {
        Ok(()) => Ok(trial),
        Err(text) => Err((text, trial.log.unwrap_or_default())),
    }
}

fn kind(what: &What) -> &'static str {
    match what {
        What::Scheduled => "scheduled",
        What::Begun { .. } => "begun",
        What::Joined { .. } => "joined",
        What::Stage { .. } => "stage",
        What::Started { .. } => "started",
        What::Waiting { failures: None, .. } => "waiting",
        What::Waiting { failures: Some(_), .. } => "to be tried again",
        What::Late { .. } => "late",
        What::Audited(_) => "audited",
        What::Stepped { .. } => "stepped",
        What::Awaited { .. } => "awaited",
        What::Ended { .. } => "ended",
        What::PendingEnded { .. } => "pending ended",
        What::Paused { .. } => "paused",
        What::Resumed { .. } => "resumed",
        What::Cancelling => "cancelling",
        What::Ending { .. } => "ending",
        What::UnbegunEnded { .. } => "unbegun ended",
        What::Aborting { .. } => "aborting",
        What::Recurred { .. } => "recurred",
        What::Finished { .. } => "finished",
    }
}

/// The same failure, or another one, with as few steps as can be.
fn shrink(seed: u64, mut steps: Vec<u64>, is_written: bool) -> Vec<u64> {
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut place = 0;
        while place < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(place..(place + size).min(steps.len()));
            match run(seed, &fewer, is_written, None) {
                Ok(_) => place += size,
                Err(_) => steps = fewer,
            }
        }
        size /= 2;
    }
    steps
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn the_engine_does_what_the_reference_model_allows_and_misses_nothing() {
    let wanted = number("LATCH_MODEL_STEPS").map_or(STEPS, |steps| steps as usize);
    let first = number("LATCH_MODEL_SEED").unwrap_or(1);
    let mut decided: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, seed) in (0..wanted.div_ceil(STEPS_OF_A_RUN)).zip(first..) {
        let is_written = number % WRITTEN == 0;
        let mut dice = Dice(seed);
        let steps: Vec<u64> = (0..STEPS_OF_A_RUN).map(|_| dice.next()).collect();
        let (text, log) = match run(seed, &steps, is_written, None) {
            Ok(trial) => {
                trial.decided.iter().for_each(|(kind, count)| *decided.entry(kind).or_default() += count);
                continue;
            }
            Err(wrong) => {
                let shrunk = shrink(seed, steps, is_written);
                run(seed, &shrunk, is_written, Some(String::new())).err().unwrap_or(wrong)
            }
        };
        panic!("{log}LATCH_MODEL_SEED={seed}: {text}");
    }
    let rare = decided.iter().find(|(_, count)| **count < wanted / 1000);
    assert!(rare.is_none() && decided.len() == KINDS || wanted < STEPS, "it shows little of {rare:?}: {decided:?}");
}
