//! `latch job`.

mod template;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{FailureClass, JobPolicy};
use iothub_protocol::job::recurrence::{Recurrence, Schedule};
use iothub_protocol::job::steps::{self, Step};
use iothub_protocol::job::{JobAction, JobRequest, TwinUpdate};
use iothub_protocol::{plugin_report, time};
use iothub_service::{JobFilter, PageRequest, ServiceClient};
use plugin_runtime::PluginName;
use serde_json::{Value, json};

use super::targets::Chosen;
use super::{audit, policy, preview, results};
use crate::args::{
    AgainArgs, AuditArgs, EngineChoice, JobArgs, JobCommand, RecurrenceArgs, RolloutArgs, ScheduleArgs, Stages,
};
use crate::context::Context;
use crate::engines::Engines;
use crate::exit::EndedBadly;
use crate::output::{cell, document, line, table};
use crate::{signals, watch};

pub(super) async fn run(args: JobArgs, context: &Context) -> anyhow::Result<()> {
    let engine = args.engine;
    let of = async |id: &JobId| Engines::find(context, engine).await?.of(id).await;
    match args.command {
        JobCommand::Method { name, call, schedule, policy, answer } => {
            let action = JobAction::Method(super::direct_method(name, &call)?);
            create(action, schedule, policy::of_methods(&policy, &answer), engine, context).await
        }
        JobCommand::Twin { change, schedule, policy, success } => {
            let action = JobAction::UpdateTwin(super::twin_update(&change)?);
            let policy = policy::of_updates(&policy, success.success_by.as_deref(), &success.report)?;
            create(action, schedule, policy, engine, context).await
        }
        JobCommand::Run { name, set, set_json, id, wait } => {
            let parameters = template::values(set, set_json)?;
            let id = id.map_or_else(made_up_id, Ok)?;
            // Templates are kept by the engine, and Azure's keeps none.
            let service = Engines::find(context, engine).await?.for_new(true)?;
            let created = service.run_template(&name, &id, &parameters).await?;
            follow_or_tell(&service, &id, &created, wait, context).await
        }
        JobCommand::Template(command) => {
            template::run(command, &Engines::find(context, engine).await?.for_new(true)?, context).await
        }
        JobCommand::List => list(engine, context).await,
        JobCommand::Show { id, device: None } => document(&of(&id).await?.get_job(&id).await?),
        JobCommand::Show { id, device: Some(device) } => show_device(&of(&id).await?, &id, &device).await,
        JobCommand::Watch { id } => follow(&of(&id).await?, &id, watch::Print::Changes, context).await,
        JobCommand::Cancel { id } => {
            let job = of(&id).await?.cancel_job(&id).await?;
            if context.json { document(&job) } else { line(&format!("{id} {}", cell(&job["status"]))) }
        }
        JobCommand::Pause { id, reason } => control(&id, &of(&id).await?.pause_job(&id, &reason).await?, context),
        JobCommand::Resume { id } => control(&id, &of(&id).await?.resume_job(&id).await?, context),
        JobCommand::Approve { id, stage } => control(&id, &of(&id).await?.approve_job(&id, stage).await?, context),
        JobCommand::Retry { source, class, again: args } => {
            again(&of(&source).await?, &source, Some(&class), args, context).await
        }
        JobCommand::Clone { source, again: args } => again(&of(&source).await?, &source, None, args, context).await,
        JobCommand::Report { id } => report(&of(&id).await?, &id, context).await,
        JobCommand::Results(args) => results::run(&of(&args.id).await?, args, context).await,
        JobCommand::Audit(args) => audit::run(&audited(&args, engine, context).await?, args, context).await,
    }
}

/// `latch plugin rollout`: a twin job that pins a version.
pub(super) async fn rollout(args: RolloutArgs, context: &Context) -> anyhow::Result<()> {
    let RolloutArgs { name, wanted, schedule, mut policy, report, engine } = args;
    let name = PluginName::parse(&name)?;
    if policy.stage.is_empty() {
        policy.stage = vec![Stages::Percent(ROLLOUT_STAGES.to_vec())];
    }
    let update = TwinUpdate { tags: None, desired: Some(plugin_report::pin(name.as_str(), wanted)) };
    let policy = policy::of_updates(&policy, Some(name.as_str()), &report)?;
    create(JobAction::UpdateTwin(update), schedule, policy, engine, context).await
}

async fn create(
    action: JobAction,
    schedule: ScheduleArgs,
    policy: Option<JobPolicy>,
    engine: EngineChoice,
    context: &Context,
) -> anyhow::Result<()> {
    let start_time = start_time(schedule.start.as_deref())?;
    let chosen = Chosen::read(&schedule.targets)?;
    let then = schedule.then.map(|file| steps_of(&file, &action)).transpose()?.unwrap_or_default();
    let job_id = schedule.id.map_or_else(made_up_id, Ok)?;
    let request = JobRequest {
        job_id: job_id.clone(),
        action,
        query_condition: chosen.condition.clone(),
        start_time,
        max_execution_time_in_seconds: schedule.max_execution,
        policy,
        targets: chosen.targets.clone(),
        then,
        recurrence: recurrence(schedule.recurrence),
    };
    let has_extension = request.extension().is_some();
    let service = Engines::find(context, engine).await?.for_new(has_extension || schedule.dry_run)?;
    if schedule.dry_run {
        let preview = preview::ask(&service, &request, &chosen).await?;
        return if context.json { document(&preview) } else { preview::show(&preview) };
    }
    let created = service.create_job(&request).await?;
    if has_extension && created["latch"].is_null() {
        service.cancel_job(&job_id).await?;
        bail!(
            "this hub has taken the job {job_id} and not its policy, targets, schedule or further steps; the job is cancelled, \
             but may have reached devices"
        );
    }
    if let Err(error) = chosen.send(&service, &job_id).await {
        // Without its list it does not begin. Whether or not that can be told now, the hub drops it in time.
        drop(service.cancel_job(&job_id).await);
        return Err(error.context(format!("the list of the job {job_id} was not taken, and the job is cancelled")));
    }
    follow_or_tell(&service, &job_id, &created, schedule.wait, context).await
}

fn start_time(text: Option<&str>) -> anyhow::Result<Option<DateTime<Utc>>> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || anyhow!("--start {text:?} is not a time with a zone, such as 2026-12-24T18:00:00Z");
    time::parse(text).map(Some).ok_or_else(wrong)
}

async fn again(
    service: &ServiceClient,
    source: &JobId,
    failed: Option<&[FailureClass]>,
    args: AgainArgs,
    context: &Context,
) -> anyhow::Result<()> {
    let start = start_time(args.start.as_deref())?;
    let id = args.id.map_or_else(made_up_id, Ok)?;
    let made = service.clone_job(source, &id, start, failed).await?;
    follow_or_tell(service, &id, &made, args.wait, context).await
}

async fn follow_or_tell(
    service: &ServiceClient,
    id: &JobId,
    created: &Value,
    wait: bool,
    context: &Context,
) -> anyhow::Result<()> {
    if wait {
        return follow(service, id, watch::Print::Nothing, context).await;
    }
    if context.json { document(created) } else { line(&format!("{id} {}", cell(&created["status"]))) }
}

/// A device's row of a job, with every attempt at it.
async fn show_device(service: &ServiceClient, id: &JobId, device: &Address) -> anyhow::Result<()> {
    let attempts = service.device_attempts(id, device).await?;
    let mut row = service.device_job(id, device).await?.unwrap_or_default();
    row["attempts"] = Value::Array(attempts);
    document(&row)
}

fn steps_of(file: &Path, action: &JobAction) -> anyhow::Result<Vec<Step>> {
    let at = || file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", at()))?;
    let list: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", at()))?;
    steps::from_json(&list, action).map_err(|error| anyhow!("{}: {}", at(), error.message))
}

/// The engine whose trail is asked for.
async fn audited(args: &AuditArgs, engine: EngineChoice, context: &Context) -> anyhow::Result<ServiceClient> {
    let engines = Engines::find(context, engine).await?;
    match &args.id {
        Some(id) => engines.of(id).await,
        None => engines.for_new(true),
    }
}

/// Tell how a job is after a command.
fn control(id: &JobId, job: &Value, context: &Context) -> anyhow::Result<()> {
    if context.json {
        return document(job);
    }
    let paused = &job["latch"]["progress"]["paused"];
    match paused.is_null() {
        true => line(&format!("{id} {}", cell(&job["status"]))),
        false => line(&format!("{id} {}", watch::paused(paused))),
    }
}

async fn report(service: &ServiceClient, id: &JobId, context: &Context) -> anyhow::Result<()> {
    let report = service.job_report(id).await?;
    if context.json {
        return document(&report);
    }
    let failures = |group: &Value| {
        let classes = group["failures"].as_object().into_iter().flatten();
        classes.map(|(class, count)| format!("{count} {class}")).collect::<Vec<_>>().join(", ")
    };
    let row = |name: String, group: &Value| {
        let count = |status: &str| group["byStatus"][status].as_u64().unwrap_or(0).to_string();
        let statuses = ["completed", "failed", "running", "pending", "canceled"].map(count);
        let head = [name, cell(&group["devices"])];
        head.into_iter().chain(statuses).chain([failures(group)]).collect::<Vec<_>>()
    };
    let tag = report["groupBy"].as_str();
    let groups = report["groups"].as_array().into_iter().flatten();
    let name = |group: &Value| group["group"].as_str().unwrap_or("(none)").to_owned();
    let mut rows: Vec<_> = groups.map(|group| row(name(group), group)).collect();
    rows.push(row("all".to_owned(), &report));
    let tag = tag.unwrap_or("group").to_uppercase();
    table(&[&tag, "DEVICES", "SUCCEEDED", "FAILED", "RUNNING", "PENDING", "LEFT OUT", "FAILURES"], &rows)?;
    watch::continuous(&report["continuousUntil"]).map_or(Ok(()), |until| line(&format!("\n{until}")))
}

fn recurrence(args: RecurrenceArgs) -> Option<Recurrence> {
    let mut schedule = Schedule {
        until: args.until,
        count: args.count,
        missed: args.missed.unwrap_or_default(),
        overlap: args.overlap.unwrap_or_default(),
        ..Schedule::new(args.cron?)
    };
    if let Some(zone) = args.time_zone {
        schedule.time_zone = zone;
    }
    Some(Recurrence::Series(schedule))
}

/// Sorts by time, and does not collide with one made elsewhere in the same second.
fn made_up_id() -> anyhow::Result<JobId> {
    let id = format!("job-{}-{:06x}", Utc::now().format("%Y%m%d-%H%M%S"), rand::random::<u32>() & 0xff_ffff);
    Ok(JobId::parse(&id)?)
}

async fn follow(service: &ServiceClient, id: &JobId, print: watch::Print, context: &Context) -> anyhow::Result<()> {
    let print = if context.json { print } else { watch::Print::Nothing };
    let job = watch::follow(service, id, print, signals::stop()?).await?;
    match (context.json, print) {
        // The last change is the end.
        (true, watch::Print::Changes) => {}
        (true, watch::Print::Nothing) => document(&job)?,
        (false, _) => line(&summary(&job))?,
    }
    judge(id, &job)
}

/// `completed: 97 of 100 devices succeeded, 3 failed`.
fn summary(job: &Value) -> String {
    let statistics = &job["deviceJobStatistics"];
    let count = |name: &str| statistics[name].as_u64().unwrap_or(0);
    let mut text = format!(
        "{} {}: {} of {} devices succeeded",
        cell(&job["jobId"]),
        cell(&job["status"]),
        count("succeededCount"),
        count("deviceCount")
    );
    match watch::failures(job).as_str() {
        "" => {}
        failures => text.push_str(&format!(", {failures}")),
    }
    let canceled = ["succeededCount", "failedCount", "pendingCount", "runningCount"].map(count).iter().sum::<u64>();
    let canceled = count("deviceCount").saturating_sub(canceled);
    if canceled > 0 && !job["latch"]["policy"].is_null() {
        text.push_str(&format!(", {canceled} left out"));
    }
    if let Some(reason) = job["failureReason"].as_str() {
        text.push_str(&format!(" ({reason})"));
    }
    text
}

fn judge(id: &JobId, job: &Value) -> anyhow::Result<()> {
    let failed = job["deviceJobStatistics"]["failedCount"].as_u64().unwrap_or(0);
    match job["status"].as_str() {
        Some("completed") if failed == 0 => Ok(()),
        Some("completed") => {
            let devices = if failed == 1 { "device" } else { "devices" };
            bail!(EndedBadly(format!("{failed} {devices} failed\nhint: latch job results {id} --failed")))
        }
        status => bail!(EndedBadly(format!("the job ended as {}", status.unwrap_or("unknown")))),
    }
}

async fn list(engine: EngineChoice, context: &Context) -> anyhow::Result<()> {
    let mut jobs = Vec::new();
    for (engine, service) in Engines::find(context, engine).await?.all()? {
        let mut request = PageRequest::default();
        loop {
            let page = service.query_jobs(JobFilter::default(), &request).await?;
            jobs.extend(page.items.into_iter().map(|mut job| {
                job["engine"] = json!(engine);
                job
            }));
            request.continuation = page.continuation;
            if request.continuation.is_none() {
                break;
            }
        }
    }
    // Each engine's come so; a job without that time, which the API does not foresee, comes last.
    jobs.sort_by(|a, b| b["createdTime"].as_str().cmp(&a["createdTime"].as_str()));
    if context.json {
        return document(&Value::Array(jobs));
    }
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            let statistics = &job["deviceJobStatistics"];
            vec![
                cell(&job["jobId"]),
                cell(&job["type"]),
                cell(&job["engine"]),
                cell(&job["status"]),
                cell(&statistics["deviceCount"]),
                cell(&statistics["succeededCount"]),
                cell(&statistics["failedCount"]),
                cell(&job["startTime"]),
            ]
        })
        .collect();
    table(&["JOB", "TYPE", "ENGINE", "STATUS", "DEVICES", "SUCCEEDED", "FAILED", "START"], &rows)
}

/// Of a rollout that names none: few, many, all.
const ROLLOUT_STAGES: [u8; 3] = [5, 50, 100];
