//! `latch job audit`: who did what to jobs.

use anyhow::bail;
use iothub_service::{PageRequest, ServiceClient};
use serde_json::Value;

use crate::args::AuditArgs;
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{Columns, cell, document, line, say};

/// Entries of one page.
const PAGE: u32 = 1000;

pub(super) async fn run(service: &ServiceClient, args: AuditArgs, context: &Context) -> anyhow::Result<()> {
    if args.verify {
        return check(service, args.head.as_deref(), context).await;
    }
    let mut request = PageRequest { max_items: Some(PAGE), continuation: None };
    let mut columns = Columns::new(&["NUMBER", "TIME", "WHO", "DID", "JOB", "DETAILS"]);
    let mut entries = Vec::new();
    loop {
        let page = service.job_audit(args.id.as_ref(), &request).await?;
        if context.json {
            entries.extend(page.items);
        } else {
            columns.print(&page.items.iter().map(row).collect::<Vec<_>>())?;
        }
        request.continuation = page.continuation;
        if request.continuation.is_none() {
            return if context.json { document(&Value::Array(entries)) } else { Ok(()) };
        }
    }
}

fn row(entry: &Value) -> Vec<String> {
    let details = match entry["details"].as_object() {
        Some(details) if details.is_empty() => "-".to_owned(),
        _ => cell(&entry["details"]),
    };
    let cells = ["number", "timeUtc", "actor", "action", "jobId"].map(|name| cell(&entry[name]));
    cells.into_iter().chain([details]).collect()
}

/// Say whether the trail holds, and where it does not.
async fn check(service: &ServiceClient, head: Option<&str>, context: &Context) -> anyhow::Result<()> {
    let found = service.check_audit().await?;
    let mut breaks: Vec<String> = Vec::new();
    for broken in found["breaks"].as_array().into_iter().flatten() {
        breaks.push(format!("at entry {}: {}", cell(&broken["number"]), cell(&broken["reason"])));
    }
    if let Some(head) = head
        && let Some(missing) = past(service, head, &found["head"]).await?
    {
        breaks.push(missing);
    }
    if context.json {
        document(&found)?;
    } else {
        let (entries, number, hash) = (&found["entries"], &found["head"]["number"], cell(&found["head"]["hash"]));
        line(&format!("{entries} entries, head {number}:{hash}"))?;
    }
    if breaks.is_empty() {
        return Ok(());
    }
    breaks.iter().for_each(|text| say(text));
    bail!(EndedBadly("the audit trail does not hold".to_owned()))
}

/// Why a head that was noted before is none of this trail's any more.
async fn past(service: &ServiceClient, noted: &str, now: &Value) -> anyhow::Result<Option<String>> {
    let parts = noted.split_once(':').and_then(|(number, hash)| Some((number.parse::<u64>().ok()?, hash)));
    let Some((number, hash)) = parts else {
        bail!("--head {noted:?} is none that --verify has shown, such as 12:ab34…")
    };
    if now["number"].as_u64() == Some(number) {
        let same = now["hash"] == *hash;
        return Ok((!same).then(|| format!("entry {number} is another one than that of --head")));
    }
    // The entry after it names its hash.
    let continuation = Some((number + 2).to_string());
    let page = service.job_audit(None, &PageRequest { max_items: Some(1), continuation }).await?;
    Ok(match page.items.first() {
        Some(next) if next["number"].as_u64() == Some(number + 1) => {
            let same = next["previous"] == *hash;
            (!same).then(|| format!("entry {number} is another one than that of --head"))
        }
        _ => Some(format!("entry {number} of --head is not there, nor what came after it")),
    })
}
