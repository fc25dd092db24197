//! Bad days of a hub, as devices and back ends have met them: what goes wrong, for whom and when. Pure.
//!
//! Every decision comes from the day's seed, the device's id, and how many decisions that device has had of that day
//! before. So the same seed gives each device the same fate, however the work of the hub's threads is mixed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;

use super::pattern::DevicePattern;
use crate::hub::Now;

/// Bad days at once. More could hardly be told apart.
pub const MAX_DAYS: usize = 16;
/// The longest day.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The slowest answer that can be asked for: no client waits longer.
pub const SLOWEST: Duration = Duration::from_secs(300);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadDay {
    /// Links are cut as if their tokens had expired, each once, spread over the day.
    TokenCut,
    /// Somebody else connects as the device, once for each, spread over the day.
    TakeOver,
    /// PUBACKs of device-to-cloud messages are not sent.
    LostPubacks,
    /// The hub neither reads from nor writes to the links that there are, and does not close them.
    HalfOpen,
    /// Answers come late.
    SlowHub,
    /// Devices are not told of changes to their desired properties.
    LostNotices,
    /// All links are cut at once.
    ReconnectStorm,
    /// The hub answers nothing at all.
    Silence,
}

impl BadDay {
    pub const ALL: [BadDay; 8] = [
        BadDay::TokenCut,
        BadDay::TakeOver,
        BadDay::LostPubacks,
        BadDay::HalfOpen,
        BadDay::SlowHub,
        BadDay::LostNotices,
        BadDay::ReconnectStorm,
        BadDay::Silence,
    ];

    pub fn name(self) -> &'static str {
        match self {
            BadDay::TokenCut => "token-cut",
            BadDay::TakeOver => "take-over",
            BadDay::LostPubacks => "lost-pubacks",
            BadDay::HalfOpen => "half-open",
            BadDay::SlowHub => "slow-hub",
            BadDay::LostNotices => "lost-notices",
            BadDay::ReconnectStorm => "reconnect-storm",
            BadDay::Silence => "silence",
        }
    }

    pub fn by_name(name: &str) -> Option<BadDay> {
        BadDay::ALL.into_iter().find(|day| day.name() == name)
    }

    /// How long it lasts if nothing is said. Silence: the four minutes for which SDKs go on trying.
    fn usual_length(self) -> Duration {
        match self {
            BadDay::TokenCut | BadDay::TakeOver => Duration::from_secs(60),
            BadDay::ReconnectStorm => Duration::from_secs(1),
            BadDay::LostPubacks | BadDay::SlowHub | BadDay::LostNotices => Duration::from_secs(120),
            BadDay::HalfOpen => Duration::from_secs(300),
            BadDay::Silence => Duration::from_secs(240),
        }
    }

    fn usual_percent(self) -> u8 {
        match self {
            BadDay::LostPubacks => 20,
            BadDay::LostNotices => 50,
            _ => 100,
        }
    }
}

/// What is asked for. What is not said is as usual for that day.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    pub devices: Option<DevicePattern>,
    /// Of devices, or of what is lost or late where that is what goes wrong. 1 to 100.
    pub percent: Option<u8>,
    pub length: Option<Duration>,
    /// How late answers are, at least and at most; of [`BadDay::SlowHub`] only.
    pub delay: Option<(Duration, Duration)>,
}

/// What will happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub what: BadDay,
    pub devices: DevicePattern,
    pub percent: u8,
    pub length: Duration,
    pub delay: (Duration, Duration),
    pub seed: u64,
}

/// Why there is no such day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("percent must be 1 to 100")]
    Percent,
    #[error("a bad day lasts from 1 ms to {} h", LONGEST.as_secs() / 3600)]
    Length,
    #[error("a reconnect storm is one moment and has no length")]
    LengthOfStorm,
    #[error("only a slow hub has a delay")]
    DelayOfOther,
    #[error("the delay must go from the shorter to the longer, up to {} s", SLOWEST.as_secs())]
    Delay,
    #[error("there are {MAX_DAYS} bad days already, stop one first")]
    TooMany,
}

impl Plan {
    /// # Errors
    /// If a wish cannot be met.
    pub fn new(what: BadDay, seed: u64, wishes: Wishes) -> Result<Plan, PlanError> {
        let Wishes { devices, percent, length, delay } = wishes;
        let percent = percent.unwrap_or(what.usual_percent());
        if !(1..=100).contains(&percent) {
            return Err(PlanError::Percent);
        }
        if what == BadDay::ReconnectStorm && length.is_some() {
            return Err(PlanError::LengthOfStorm);
        }
        let length = length.unwrap_or(what.usual_length());
        if length < Duration::from_millis(1) || length > LONGEST {
            return Err(PlanError::Length);
        }
        if delay.is_some() && what != BadDay::SlowHub {
            return Err(PlanError::DelayOfOther);
        }
        let delay = delay.unwrap_or((Duration::from_millis(500), Duration::from_secs(5)));
        if delay.0 > delay.1 || delay.1 > SLOWEST {
            return Err(PlanError::Delay);
        }
        let devices = devices.unwrap_or_else(DevicePattern::all);
        Ok(Plan { what, devices, percent, length, delay, seed })
    }

    /// Whether the device is among those that are hit.
    fn hits(&self, device: &Address) -> bool {
        self.devices.matches(device)
            && below(draw(self.seed, &device.to_string(), CHOICE, 0), 100) < self.percent.into()
    }
}

/// A day under way.
#[derive(Debug, Clone)]
pub struct Day {
    /// Never used twice by a hub.
    pub number: u64,
    pub plan: Plan,
    pub began: DateTime<Utc>,
    /// What has gone wrong so far: links, packets or answers.
    pub count: u64,
    start: Instant,
    end: Instant,
    /// How many decisions each device has had. Back ends together are the one without a name.
    decisions: HashMap<Option<Address>, u64>,
}

/// What is to happen to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    pub day: u64,
    pub at: Instant,
    pub what: Blow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    ExpireToken,
    TakeOver { until: Instant },
    GoMute { until: Instant },
    Cut,
}

/// All days under way.
#[derive(Debug, Default)]
pub struct BadDays {
    days: Vec<Day>,
    last: u64,
}

impl BadDays {
    /// The number of the new day.
    ///
    /// # Errors
    /// If there are too many.
    pub fn begin(&mut self, now: Now, plan: Plan) -> Result<u64, PlanError> {
        if self.days.len() == MAX_DAYS {
            return Err(PlanError::TooMany);
        }
        self.last += 1;
        let (start, end) = (now.steady, now.steady + plan.length);
        let day = Day { number: self.last, plan, began: now.wall, count: 0, start, end, decisions: HashMap::new() };
        self.days.push(day);
        Ok(self.last)
    }

    /// End a day before its time, or all of them; those that there were.
    pub fn stop(&mut self, number: Option<u64>) -> Vec<Day> {
        self.days.extract_if(.., |day| number.is_none_or(|number| number == day.number)).collect()
    }

    /// The days that have ended by now, and are no more.
    pub fn expire(&mut self, now: Instant) -> Vec<Day> {
        self.days.extract_if(.., |day| day.end <= now).collect()
    }

    /// When a day ends next.
    pub fn deadline(&self) -> Option<Instant> {
        self.days.iter().map(|day| day.end).min()
    }

    pub fn days(&self) -> &[Day] {
        &self.days
    }

    pub fn is_empty(&self) -> bool {
        self.days.is_empty()
    }

    /// What happens next to a link that is there since `since`. A link that came later than its device's moment is
    /// spared. The same answer each time, until a day begins or ends.
    pub fn strike(&self, device: &Address, since: Instant) -> Option<Strike> {
        let strikes = self.days.iter().filter_map(|day| {
            let at = day.moment(device)?;
            let what = match day.plan.what {
                BadDay::TokenCut => Blow::ExpireToken,
                BadDay::TakeOver => Blow::TakeOver { until: day.end },
                BadDay::HalfOpen => Blow::GoMute { until: day.end },
                BadDay::ReconnectStorm => Blow::Cut,
                _ => return None,
            };
            (since <= at).then_some(Strike { day: day.number, at, what })
        });
        strikes.min_by_key(|strike| (strike.at, strike.day))
    }

    /// Until when the hub says nothing to this device, or to back ends; with the day. Only a silence for all devices is
    /// one for back ends and for connections that have not said who they are.
    pub fn silence(&self, device: Option<&Address>) -> Option<(u64, Instant)> {
        let silent = |day: &&Day| {
            day.plan.what == BadDay::Silence
                && match device {
                    Some(device) => day.plan.hits(device),
                    None => day.plan.devices.is_all() && day.plan.percent == 100,
                }
        };
        self.days.iter().filter(silent).map(|day| (day.number, day.end)).max_by_key(|(_, end)| *end)
    }

    /// Whether the PUBACK that is due now is lost.
    pub fn loses_puback(&mut self, device: &Address) -> bool {
        self.loses(BadDay::LostPubacks, device)
    }

    /// Whether the notice of desired properties that is due now is lost.
    pub fn loses_notice(&mut self, device: &Address) -> bool {
        self.loses(BadDay::LostNotices, device)
    }

    /// How late the answer that is due now is, to a device or to a back end. Only a slow hub for all devices is one for
    /// back ends.
    pub fn delay(&mut self, device: Option<&Address>) -> Option<Duration> {
        let mut longest = None;
        for day in self.days.iter_mut().filter(|day| day.plan.what == BadDay::SlowHub) {
            let concerns = device.map_or(day.plan.devices.is_all(), |device| day.plan.devices.matches(device));
            if concerns && day.decide(device) {
                let (from, to) = day.plan.delay;
                let number = day.decisions.get(&device.cloned()).copied().unwrap_or_default();
                let roll = draw(day.plan.seed, &name_of(device), LATENESS, number);
                let delay = from + (to - from).mul_f64(fraction(roll));
                longest = longest.max(Some(delay));
            }
        }
        longest
    }

    /// Count what went wrong on a day, if it still is.
    pub fn count(&mut self, number: u64) {
        if let Some(day) = self.days.iter_mut().find(|day| day.number == number) {
            day.count += 1;
        }
    }

    fn loses(&mut self, what: BadDay, device: &Address) -> bool {
        let days = self.days.iter_mut().filter(|day| day.plan.what == what && day.plan.devices.matches(device));
        // Each day decides, so that one does not change what another does.
        days.fold(false, |lost, day| day.decide(Some(device)) | lost)
    }
}

impl Day {
    pub fn remaining(&self, now: Instant) -> Duration {
        self.end.saturating_duration_since(now)
    }

    /// When it is the device's turn, if it has one.
    fn moment(&self, device: &Address) -> Option<Instant> {
        if !self.plan.hits(device) {
            return None;
        }
        let spread = match self.plan.what {
            BadDay::TokenCut | BadDay::TakeOver => {
                self.plan.length.mul_f64(fraction(draw(self.plan.seed, &device.to_string(), MOMENT, 0)))
            }
            _ => Duration::ZERO,
        };
        Some(self.start + spread)
    }

    /// Whether this one of many is lost or late, and count it.
    fn decide(&mut self, device: Option<&Address>) -> bool {
        let number = self.decisions.entry(device.cloned()).or_default();
        *number += 1;
        let is_hit = below(draw(self.plan.seed, &name_of(device), LOSS, *number), 100) < self.plan.percent.into();
        self.count += u64::from(is_hit);
        is_hit
    }
}

fn name_of(device: Option<&Address>) -> String {
    device.map(Address::to_string).unwrap_or_default()
}

// What a draw is for, so that one says nothing of another.
const CHOICE: u64 = 1;
const MOMENT: u64 = 2;
const LOSS: u64 = 3;
const LATENESS: u64 = 4;

/// A number that only the arguments decide. Ours, as a generator of a library may give other numbers in its next
/// version, and a seed that somebody wrote down is to mean the same then.
fn draw(seed: u64, name: &str, purpose: u64, number: u64) -> u64 {
    let named = name.bytes().fold(mixed(seed ^ mixed(purpose)), |state, byte| mixed(state ^ u64::from(byte)));
    mixed(named ^ mixed(number))
}

/// One step of SplitMix64.
fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Evenly from 0 to below `limit`.
fn below(roll: u64, limit: u64) -> u64 {
    let scaled = (u128::from(roll) * u128::from(limit)) >> 64;
    u64::try_from(scaled).unwrap_or(limit)
}

/// Evenly from 0 to below 1.
fn fraction(roll: u64) -> f64 {
    (roll >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    fn now() -> Now {
        Now { wall: DateTime::UNIX_EPOCH, steady: Instant::now() }
    }

    fn days(now: Now, what: BadDay, seed: u64, wishes: Wishes) -> BadDays {
        let mut days = BadDays::default();
        days.begin(now, Plan::new(what, seed, wishes).expect("a plan")).expect("a day");
        days
    }

    fn percent(percent: u8) -> Wishes {
        Wishes { percent: Some(percent), ..Wishes::default() }
    }

    #[test]
    fn the_same_seed_decides_the_same_however_devices_are_mixed() {
        let devices: Vec<Address> = (0..20).map(|n| id(&format!("door-{n}"))).collect();
        let run = |seed, one_after_another: bool| {
            let mut days = days(now(), BadDay::LostPubacks, seed, Wishes::default());
            let mut lost: Vec<Vec<bool>> = vec![vec![]; devices.len()];
            for n in 0..2000 {
                let which = if one_after_another { n / 100 } else { n % 20 };
                lost[which].push(days.loses_puback(&devices[which]));
            }
            lost
        };
        assert_eq!(run(7, true), run(7, false));
        assert_ne!(run(7, true), run(8, true));
        let lost = run(7, true).concat().into_iter().filter(|lost| *lost).count();
        assert!((330..=470).contains(&lost), "{lost} of 2000 at 20 %");
        // Written down, so that a seed means the same in every version.
        let mut days = days(now(), BadDay::LostNotices, 42, Wishes::default());
        let first: Vec<bool> = (0..12).map(|_| days.loses_notice(&devices[0])).collect();
        assert_eq!(first.iter().map(|lost| u8::from(*lost)).collect::<Vec<_>>(), EXPECTED);
    }

    const EXPECTED: [u8; 12] = [0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0];

    #[test]
    fn two_days_do_not_disturb_each_other() {
        let alone = |seed| {
            let mut days = days(now(), BadDay::LostPubacks, seed, percent(30));
            (0..200).map(|_| days.loses_puback(&id("d"))).collect::<Vec<_>>()
        };
        let mut both = days(now(), BadDay::LostPubacks, 1, percent(30));
        both.begin(now(), Plan::new(BadDay::LostPubacks, 2, percent(30)).expect("a plan")).expect("a day");
        for (one, other) in alone(1).into_iter().zip(alone(2)) {
            assert_eq!(both.loses_puback(&id("d")), one || other);
        }
    }

    #[test]
    fn a_link_is_struck_once_at_its_devices_moment() {
        let begin = now();
        let at = |seconds| begin.steady + Duration::from_secs(seconds);
        for (what, spread) in [(BadDay::TokenCut, true), (BadDay::TakeOver, true), (BadDay::HalfOpen, false)] {
            let days = days(begin, what, 3, Wishes { length: Some(Duration::from_secs(60)), ..Wishes::default() });
            let moments: Vec<Instant> =
                (0..100).map(|n| days.strike(&id(&format!("d{n}")), begin.steady).expect("a strike").at).collect();
            let late = moments.iter().filter(|moment| **moment >= at(30)).count();
            if spread {
                assert!((30..=70).contains(&late) && moments.iter().all(|moment| *moment < at(60)), "{what:?}: {late}");
            } else {
                assert!(moments.iter().all(|moment| *moment == begin.steady));
            }
            // The link after it is spared.
            let next = moments[0] + Duration::from_nanos(1);
            assert_eq!(days.strike(&id("d0"), next), None);
        }
        let storm = days(begin, BadDay::ReconnectStorm, 3, Wishes::default());
        let strike = storm.strike(&id("d"), begin.steady);
        assert_eq!(strike, Some(Strike { day: 1, at: begin.steady, what: Blow::Cut }));
        assert_eq!(storm.strike(&id("d"), at(1)), None, "who comes later");
    }

    #[test]
    fn only_some_devices_are_hit() {
        let begin = now();
        let wishes = Wishes { devices: Some(DevicePattern::parse("a*").expect("a pattern")), ..percent(25) };
        let days = days(begin, BadDay::ReconnectStorm, 5, wishes);
        let hit = |prefix: &str| {
            (0..1000).filter(|n| days.strike(&id(&format!("{prefix}{n}")), begin.steady).is_some()).count()
        };
        assert_eq!(hit("b"), 0);
        let hit = hit("a");
        assert!((200..=300).contains(&hit), "{hit} of 1000 at 25 %");
    }

    #[test]
    fn a_silence_of_some_is_none_for_back_ends() {
        let begin = now();
        let all = days(begin, BadDay::Silence, 1, Wishes::default());
        let end = begin.steady + Duration::from_secs(240);
        assert_eq!((all.silence(None), all.silence(Some(&id("d")))), (Some((1, end)), Some((1, end))));
        let devices = Some(DevicePattern::parse("d*").expect("a pattern"));
        let some = days(begin, BadDay::Silence, 1, Wishes { devices, ..Wishes::default() });
        assert_eq!((some.silence(None), some.silence(Some(&id("e")))), (None, None));
        assert!(some.silence(Some(&id("d"))).is_some());
    }

    #[test]
    fn answers_are_late_within_the_range() {
        let delay = Some((Duration::from_millis(100), Duration::from_millis(200)));
        let mut slow = days(now(), BadDay::SlowHub, 9, Wishes { delay, ..Wishes::default() });
        for device in [None, Some(id("d"))] {
            let delays: Vec<_> = (0..100).map(|_| slow.delay(device.as_ref()).expect("late").as_millis()).collect();
            assert!(delays.iter().all(|delay| (100..=200).contains(delay)));
            assert!(delays.iter().any(|delay| *delay < 120) && delays.iter().any(|delay| *delay > 180), "{delays:?}");
        }
        assert_eq!(slow.days()[0].count, 200);
        let mut seldom = days(now(), BadDay::SlowHub, 9, percent(10));
        let late = (0..1000).filter(|_| seldom.delay(None).is_some()).count();
        assert!((60..=140).contains(&late), "{late} of 1000 at 10 %");
    }

    #[test]
    fn a_day_ends_by_itself_or_when_it_is_told_to() {
        let begin = now();
        let mut days = days(begin, BadDay::LostPubacks, 1, percent(100));
        let plan = Plan::new(BadDay::Silence, 1, Wishes::default()).expect("a plan");
        assert_eq!(days.begin(begin, plan.clone()), Ok(2));
        assert_eq!(days.deadline(), Some(begin.steady + Duration::from_secs(120)));
        assert!(days.loses_puback(&id("d")));
        assert!(days.expire(begin.steady + Duration::from_secs(119)).is_empty());
        let ended = days.expire(begin.steady + Duration::from_secs(120));
        assert_eq!(ended.iter().map(|day| (day.number, day.count)).collect::<Vec<_>>(), [(1, 1)]);
        assert!(!days.loses_puback(&id("d")) && days.stop(Some(1)).is_empty());
        assert_eq!(days.stop(Some(2)).len(), 1);
        assert_eq!(days.deadline(), None);
        for _ in 0..MAX_DAYS {
            days.begin(begin, plan.clone()).expect("a day");
        }
        assert_eq!(days.begin(begin, plan), Err(PlanError::TooMany));
        assert_eq!(days.stop(None).len(), MAX_DAYS);
    }

    #[test]
    fn wishes_that_cannot_be_met_are_refused() {
        let (second, none) = (Duration::from_secs(1), Wishes::default());
        for (what, wishes, expected) in [
            (BadDay::Silence, percent(0), PlanError::Percent),
            (BadDay::Silence, percent(101), PlanError::Percent),
            (BadDay::Silence, Wishes { length: Some(Duration::ZERO), ..none.clone() }, PlanError::Length),
            (BadDay::Silence, Wishes { length: Some(LONGEST + second), ..none.clone() }, PlanError::Length),
            (BadDay::ReconnectStorm, Wishes { length: Some(second), ..none.clone() }, PlanError::LengthOfStorm),
            (BadDay::Silence, Wishes { delay: Some((second, second)), ..none.clone() }, PlanError::DelayOfOther),
            (BadDay::SlowHub, Wishes { delay: Some((second * 2, second)), ..none.clone() }, PlanError::Delay),
            (BadDay::SlowHub, Wishes { delay: Some((second, SLOWEST + second)), ..none }, PlanError::Delay),
        ] {
            assert_eq!(Plan::new(what, 1, wishes), Err(expected), "{what:?}");
        }
        assert!(BadDay::ALL.into_iter().all(|day| BadDay::by_name(day.name()) == Some(day)));
    }
}
