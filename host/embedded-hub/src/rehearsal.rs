//! Rehearsals: an Azure tier's quotas and throttles, and the bad days of a hub. Both are off unless they are asked for.
//!
//! [`meter`], over the tiers and throttles of [`iothub_protocol::quota`], and [`bad_days`] decide, and are pure.
//! [`Rehearsal`] is what the hub's parts share of them: `gate` asks it for a device's connection, `rest/rehearse.rs` for back ends' requests, `fleet.rs` for jobs.
//! While nothing is rehearsed, asking is looking at one flag.

pub mod bad_days;
pub(crate) mod gate;
pub mod meter;
pub mod pattern;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::quota::limiter::Shaping;
use iothub_protocol::quota::tier::{Class, Sku};
use iothub_protocol::time;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::driver::HubHandle;
use crate::hub::{ConnectRequest, Credentials, LinkInput, LinkOutput, Now};
use crate::policy::Policy;
use bad_days::{BadDays, Day, Plan, PlanError, Strike};
use meter::{Admission, Meter, Spent};

/// In the data folder: the day's count of messages.
const QUOTA_FILE: &str = "quota.json";
/// How often the count is written. What was counted since does not survive `kill -9`; the quota is a rehearsal.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// The name of the policy that an intruder, who takes a device's connection over, connects with.
pub(crate) const INTRUDERS_POLICY: &str = "device";

/// What is rehearsed from the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct RehearsalSettings {
    /// Whose quotas and throttles to apply; of none, without.
    pub tier: Option<Sku>,
    pub shaping: Shaping,
}

/// What is rehearsed. Cheap to clone.
#[derive(Clone, Default)]
pub struct Rehearsal {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    meter: Option<Mutex<Meter>>,
    quota_file: Option<PathBuf>,
    days: Mutex<BadDays>,
    /// Whether there is any day, so that most need not lock.
    is_bad: AtomicBool,
    /// Changes when a day begins or ends.
    changes: watch::Sender<u64>,
    intruder: Option<Policy>,
    /// Held by who counts first and acts then, under a tier.
    turns: tokio::sync::Mutex<()>,
}

impl Rehearsal {
    /// With the count that is kept in `data`.
    pub(crate) async fn new(settings: RehearsalSettings, data: &Path, intruder: Option<Policy>) -> Rehearsal {
        let mut shared = Shared { intruder, ..Shared::default() };
        if let Some(sku) = settings.tier {
            let file = data.join(QUOTA_FILE);
            let meter = Meter::new(sku, settings.shaping, Utc::now(), read_spent(&file).await);
            tracing::info!(%sku, messages_today = meter.spent().messages, "the hub has the quotas and throttles of a tier");
            shared.meter = Some(Mutex::new(meter));
            shared.quota_file = Some(file);
        }
        Rehearsal { shared: Arc::new(shared) }
    }

    /// End days that are over and write the count, until `cancel`.
    pub(crate) async fn keep(self, cancel: CancellationToken) {
        let mut changes = self.shared.changes.subscribe();
        let mut saved = self.spent();
        let mut save_at = Instant::now() + SAVE_EVERY;
        loop {
            let deadline = self.days().deadline().into_iter().chain(self.has_tier().then_some(save_at)).min();
            tokio::select! {
                () = sleep_until(deadline) => {}
                _ = changes.changed() => continue,
                () = cancel.cancelled() => break,
            }
            self.end(|days| days.expire(Instant::now()));
            if save_at <= Instant::now() {
                saved = self.save(saved).await;
                save_at = Instant::now() + SAVE_EVERY;
            }
        }
        self.save(saved).await;
    }

    /// The tier that is rehearsed.
    pub fn sku(&self) -> Option<Sku> {
        self.meter().map(|meter| meter.sku())
    }

    /// Begin a bad day; its number.
    ///
    /// # Errors
    /// If there are too many.
    pub fn begin(&self, plan: Plan) -> Result<u64, PlanError> {
        let mut days = self.days();
        let number = days.begin(now(), plan.clone())?;
        self.shared.is_bad.store(true, Ordering::Release);
        drop(days);
        let Plan { what, devices, percent, length, seed, .. } = plan;
        tracing::info!(number, day = what.name(), %devices, percent, ?length, seed, "a bad day begins");
        self.shared.changes.send_modify(|changes| *changes += 1);
        Ok(number)
    }

    /// End a bad day before its time, or all; how many that were.
    pub fn stop(&self, number: Option<u64>) -> usize {
        self.end(|days| days.stop(number))
    }

    /// What is rehearsed, for the operator.
    pub fn to_json(&self) -> Value {
        let tier = self.meter().map(|mut meter| meter.to_json(Utc::now()));
        let days: Vec<Value> = self.days().days().iter().map(|day| shown(day, Instant::now())).collect();
        json!({"tier": tier, "badDays": days})
    }

    pub(crate) fn has_tier(&self) -> bool {
        self.shared.meter.is_some()
    }

    /// Whether nothing is rehearsed.
    pub(crate) fn is_off(&self) -> bool {
        !self.has_tier() && !self.is_bad()
    }

    pub(crate) fn is_bad(&self) -> bool {
        self.shared.is_bad.load(Ordering::Acquire)
    }

    /// Judge something that takes `amount` of its class's rate.
    pub(crate) fn admit(&self, class: Class, amount: u64) -> Admission {
        self.meter().map_or(Admission::Now, |mut meter| meter.admit(now(), class, amount))
    }

    /// Wait until something may go.
    ///
    /// # Errors
    /// The admission that is none.
    pub(crate) async fn pass(&self, class: Class, amount: u64) -> Result<(), Admission> {
        match self.admit(class, amount) {
            Admission::Now => Ok(()),
            Admission::At(at) => {
                tokio::time::sleep_until(at.into()).await;
                Ok(())
            }
            refused => Err(refused),
        }
    }

    /// As [`Rehearsal::pass`], where all that can be told is an error.
    pub(crate) async fn pass_or_fail(&self, class: Class, amount: u64) -> Result<(), HubError> {
        match self.pass(class, amount).await {
            Ok(()) => Ok(()),
            Err(refused) => refused.refusal().map_or(Ok(()), Err),
        }
    }

    /// Count something of so many bytes against the day's quota.
    pub(crate) fn charge(&self, size: impl FnOnce() -> usize) {
        if let Some(mut meter) = self.meter() {
            meter.charge(Utc::now(), size() as u64);
        }
    }

    /// Whoever counts first and acts then holds this in between.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.turns.lock().await
    }

    /// Resolves at once while the hub speaks to back ends; else when it does so again.
    pub(crate) async fn heard(&self) {
        let mut changes = self.shared.changes.subscribe();
        while self.is_bad() {
            let Some((day, until)) = self.days().silence(None) else { return };
            self.count(day);
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// How late the answer to a back end is that is due now.
    pub(crate) fn lateness(&self, device: Option<&Address>) -> Option<Duration> {
        if self.is_bad() { self.days().delay(device) } else { None }
    }

    fn silence(&self, device: Option<&Address>) -> Option<(u64, Instant)> {
        if self.is_bad() { self.days().silence(device) } else { None }
    }

    fn strike(&self, device: &Address, since: Instant) -> Option<Strike> {
        if self.is_bad() { self.days().strike(device, since) } else { None }
    }

    fn loses_puback(&self, device: &Address) -> bool {
        self.is_bad() && self.days().loses_puback(device)
    }

    fn loses_notice(&self, device: &Address) -> bool {
        self.is_bad() && self.days().loses_notice(device)
    }

    fn count(&self, day: u64) {
        self.days().count(day);
    }

    fn end(&self, end: impl FnOnce(&mut BadDays) -> Vec<Day>) -> usize {
        let mut days = self.days();
        let ended = end(&mut days);
        self.shared.is_bad.store(!days.is_empty(), Ordering::Release);
        drop(days);
        for day in &ended {
            tracing::info!(number = day.number, day = day.plan.what.name(), count = day.count, "a bad day is over");
        }
        if !ended.is_empty() {
            self.shared.changes.send_modify(|changes| *changes += 1);
        }
        ended.len()
    }

    fn days(&self) -> MutexGuard<'_, BadDays> {
        self.shared.days.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meter(&self) -> Option<MutexGuard<'_, Meter>> {
        Some(self.shared.meter.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn spent(&self) -> Option<Spent> {
        self.meter().map(|meter| meter.spent())
    }

    /// Write the count, if it is another than the one that is written; the one that is written then.
    async fn save(&self, saved: Option<Spent>) -> Option<Spent> {
        let spent = self.spent();
        let (Some(file), Some(count)) = (&self.shared.quota_file, spent) else { return saved };
        if saved == spent && file.exists() {
            return saved;
        }
        match write_spent(file, count).await {
            Ok(()) => spent,
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "the count of the day's messages cannot be written");
                saved
            }
        }
    }

    /// Connect as `address` from elsewhere, as somebody with its id would, and stay until the device takes its place
    /// back or the day is over.
    fn take_over(&self, hub: &HubHandle, address: Address, until: Instant) {
        let Some(policy) = self.shared.intruder.clone() else { return };
        let (hub, mut changes) = (hub.clone(), self.shared.changes.subscribe());
        tokio::spawn(async move {
            let lifetime = until.saturating_duration_since(Instant::now()) + Duration::from_secs(60);
            let resource = format!("localhost/{}", address.path());
            let token = policy.primary_key.sign(&resource, Some(&policy.name), Utc::now() + lifetime);
            let credentials = Credentials { token: Some(token), certificate: None };
            let Some(mut link) = hub.attach().await else { return };
            let request = ConnectRequest { address, credentials, clean_session: false, will: None, model: None };
            hub.link_input(link.id, LinkInput::Connect(Box::new(request))).await;
            loop {
                tokio::select! {
                    output = link.outputs.recv() => match output.as_deref() {
                        // It takes what is meant for the device, and does nothing with it.
                        Some(LinkOutput::Close { .. } | LinkOutput::Refused) | None => break,
                        Some(_) => {}
                    },
                    () = link.lost.cancelled() => break,
                    () = tokio::time::sleep_until(until.into()) => break,
                    // The day may have been stopped; an intruder more or less does not matter.
                    _ = changes.changed() => break,
                }
            }
            hub.link_input(link.id, LinkInput::Closed { graceful: false }).await;
        });
    }
}

fn shown(day: &Day, now: Instant) -> Value {
    let Plan { what, devices, percent, length, delay, seed } = &day.plan;
    let end: DateTime<Utc> = day.began + *length;
    let mut shown = json!({
        "number": day.number,
        "name": what.name(),
        "devices": devices.to_string(),
        "percent": percent,
        // As text: it may be larger than the numbers that every JSON reader keeps.
        "seed": seed.to_string(),
        "beganTimeUtc": time::format(day.began),
        "endTimeUtc": time::format(end),
        "remainingSeconds": day.remaining(now).as_secs(),
        "count": day.count,
    });
    if *what == bad_days::BadDay::SlowHub {
        shown["delayMilliseconds"] = json!([delay.0.as_millis() as u64, delay.1.as_millis() as u64]);
    }
    shown
}

/// None if there is none that can be read; the quota begins anew then.
async fn read_spent(file: &Path) -> Option<Spent> {
    let text = match tokio::fs::read(file).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "the count of the day's messages cannot be read, it begins anew");
            return None;
        }
    };
    let spent = serde_json::from_slice(&text);
    if let Err(error) = &spent {
        tracing::warn!(%error, file = %file.display(), "the count of the day's messages is damaged, it begins anew");
    }
    spent.ok()
}

/// A half-written file takes the place of no whole one.
async fn write_spent(file: &Path, spent: Spent) -> io::Result<()> {
    let next = file.with_extension("json.next");
    tokio::fs::write(&next, json!(spent).to_string()).await?;
    tokio::fs::rename(&next, file).await
}

/// Never, without a deadline.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    Now { wall: Utc::now(), steady: Instant::now() }
}
