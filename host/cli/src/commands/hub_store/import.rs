//! `latch hub import`: lines of devices and modules into a hub, in memory a few batches at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use chrono::Utc;
use embedded_hub::import::{NewIdentity, OfflineHub};
use futures_util::stream::{self, StreamExt as _};
use iothub_protocol::error::HubError;
use serde_json::json;
use tokio::sync::RwLock;

use super::{Owner, number_of};
use crate::admin_client::AdminClient;
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{document, line, say};
use crate::progress;

/// Longest line: far more than any twin takes.
const MAX_LINE: usize = 1024 * 1024;
/// Lines that go to the hub together, and their bytes, about.
const BATCH_LINES: usize = 2000;
const BATCH_BYTES: usize = 1024 * 1024;
/// Batches under way: while some are parsed others are written, which share a commit.
const AT_ONCE: usize = 6;
/// How the hub calls that a device or a module is there already.
const EXISTS: [&str; 2] = ["DeviceAlreadyExists", "ModuleAlreadyExistsOnDevice"];

pub(super) async fn run(file: &Path, skip_existing: bool, context: &Context) -> anyhow::Result<()> {
    let (reader, length) = open(file)?;
    let owner = Owner::find(context).await?;
    let bar = progress::byte_bar("imported", length);
    let mut lines = Lines { reader, number: 0 };
    let batches = stream::iter(std::iter::from_fn(|| lines.batch().transpose()));
    let order = RwLock::new(());
    let mut outcomes = batches
        .map(|batch| async {
            let batch = batch?;
            let bytes = batch.bytes as u64;
            // A module comes after its device, which may be in a batch before; locks are given in the order of batches.
            let (_alone, _beside) = match batch.names_modules() {
                true => (Some(order.write().await), None),
                false => (None, Some(order.read().await)),
            };
            let outcome = match &owner {
                Owner::Running => ask(context.admin(), batch).await,
                Owner::Offline { hub, .. } => write(hub, batch).await,
            };
            anyhow::Ok((bytes, outcome?))
        })
        .buffered(AT_ONCE);
    let (mut created, mut modules, mut skipped, mut failed) = (0, 0, 0, 0);
    let mut result = Ok(());
    while let Some(outcome) = outcomes.next().await {
        let (bytes, outcome) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                result = Err(error);
                break;
            }
        };
        created += outcome.created;
        modules += outcome.modules;
        for error in outcome.errors {
            if skip_existing && EXISTS.contains(&error.code.as_str()) {
                skipped += 1;
                continue;
            }
            failed += 1;
            bar.suspend(|| say(&format!("{}:{}: {}", file.display(), error.line, error.text)));
        }
        bar.inc(bytes);
    }
    drop(outcomes);
    bar.finish_and_clear();
    owner.close().await;
    let imported = number_of(created - modules, modules);
    result.with_context(|| format!("{imported} were imported, then it went wrong"))?;
    if context.json {
        document(&json!({"created": created, "modules": modules, "skipped": skipped, "failed": failed}))?;
    } else {
        let skipped = if skipped == 0 { String::new() } else { format!(", left {skipped} alone that exist") };
        line(&format!("imported {imported}{skipped}"))?;
    }
    if failed > 0 {
        bail!(EndedBadly(format!("{failed} lines of {} were not imported", file.display())));
    }
    Ok(())
}

/// The file, and how long it is.
fn open(file: &Path) -> anyhow::Result<(Box<dyn BufRead + Send>, Option<u64>)> {
    if file.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let cannot = || format!("cannot read {}", file.display());
    let opened = File::open(file).with_context(cannot)?;
    let meta = opened.metadata().with_context(cannot)?;
    if meta.is_dir() {
        bail!("{} is a folder", file.display());
    }
    Ok((Box::new(BufReader::with_capacity(256 * 1024, opened)), meta.is_file().then_some(meta.len())))
}

/// Some lines with their numbers.
#[derive(Debug, Default)]
struct Batch {
    lines: Vec<(u64, Vec<u8>)>,
    /// Of the file.
    bytes: usize,
    errors: Vec<LineError>,
}

impl Batch {
    /// Whether a line may be of a module.
    fn names_modules(&self) -> bool {
        let name = b"\"moduleId\"";
        self.lines.iter().any(|(_, line)| line.windows(name.len()).any(|window| window == name))
    }
}

/// What became of a batch.
struct Outcome {
    /// Modules among them.
    created: u64,
    modules: u64,
    /// In order of the lines.
    errors: Vec<LineError>,
}

#[derive(Debug)]
struct LineError {
    line: u64,
    code: String,
    text: String,
}

struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: u64,
}

impl Lines {
    /// The next lines; `None` at the end. Empty ones are left out.
    fn batch(&mut self) -> anyhow::Result<Option<Batch>> {
        let mut batch = Batch::default();
        while batch.lines.len() < BATCH_LINES && batch.bytes < BATCH_BYTES {
            let mut line = Vec::new();
            // One more than allowed tells a line that is too long.
            let limit = (MAX_LINE + 1) as u64;
            let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut line).context("cannot read the file")?;
            if read == 0 {
                break;
            }
            self.number += 1;
            batch.bytes += read;
            if line.len() > MAX_LINE && line.last() != Some(&b'\n') {
                batch.bytes += self.skip_line()?;
                let text = format!("the line is longer than {MAX_LINE} bytes");
                batch.errors.push(LineError { line: self.number, code: String::new(), text });
            } else if !line.trim_ascii().is_empty() {
                line.truncate(line.trim_ascii_end().len());
                batch.lines.push((self.number, line));
            }
        }
        Ok((batch.bytes > 0).then_some(batch))
    }

    /// To the end of the line; gives how many bytes that was.
    fn skip_line(&mut self) -> anyhow::Result<usize> {
        self.reader.skip_until(b'\n').context("cannot read the file")
    }
}

/// Have the running hub make the devices.
async fn ask(admin: AdminClient, batch: Batch) -> anyhow::Result<Outcome> {
    let Batch { lines, mut errors, .. } = batch;
    let (numbers, lines): (Vec<u64>, Vec<Vec<u8>>) = lines.into_iter().unzip();
    let answer = admin.post_lines("/store/devices", lines.join(&b'\n')).await?;
    for error in answer["errors"].as_array().map(Vec::as_slice).unwrap_or_default() {
        // Counted from 1 in what was sent.
        let place = error["line"].as_u64().and_then(|place| usize::try_from(place.checked_sub(1)?).ok());
        let line = place.and_then(|place| numbers.get(place)).copied().unwrap_or_default();
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        errors.push(LineError { line, code: text("code"), text: text("error") });
    }
    errors.sort_by_key(|error| error.line);
    let count = |name: &str| answer[name].as_u64().unwrap_or_default();
    Ok(Outcome { created: count("created"), modules: count("modules"), errors })
}

/// Make the devices in the store of a hub that does not run.
async fn write(hub: &OfflineHub, batch: Batch) -> anyhow::Result<Outcome> {
    let Batch { lines, mut errors, .. } = batch;
    let parsed = tokio::task::spawn_blocking(move || {
        let now = Utc::now();
        let (mut numbers, mut new, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (line, text) in lines {
            match NewIdentity::from_json(&text, now).and_then(|one| one.rows()) {
                Ok(one) => {
                    numbers.push((line, one.address().clone()));
                    new.push(one);
                }
                Err(error) => errors.push(LineError::new(line, &error)),
            }
        }
        (numbers, new, errors)
    });
    let (numbers, new, wrong) = parsed.await?;
    errors.extend(wrong);
    let (mut created, mut modules) = (0, 0);
    for ((line, id), outcome) in numbers.into_iter().zip(hub.import(new).await?) {
        match outcome.refusal(&id) {
            Some(error) => errors.push(LineError::new(line, &error)),
            None => {
                created += 1;
                modules += u64::from(id.is_module());
            }
        }
    }
    errors.sort_by_key(|error| error.line);
    Ok(Outcome { created, modules, errors })
}

impl LineError {
    fn new(line: u64, error: &HubError) -> LineError {
        LineError { line, code: error.code.name().to_owned(), text: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static [u8]) -> Lines {
        Lines { reader: Box::new(text), number: 0 }
    }

    #[test]
    fn lines_keep_their_numbers_and_their_bounds() {
        let batch = lines(b"a\n\n  \r\nb\r\nc").batch().expect("read").expect("a batch");
        let expected: [(u64, Vec<u8>); 3] = [(1, b"a".to_vec()), (4, b"b".to_vec()), (5, b"c".to_vec())];
        assert_eq!((batch.lines.as_slice(), batch.bytes), (expected.as_slice(), 11));
        assert!(lines(b"").batch().expect("read").is_none());

        let long: &'static [u8] = [vec![b'x'; MAX_LINE + 5], b"\nshort\n".to_vec()].concat().leak();
        let mut lines = lines(long);
        let batch = lines.batch().expect("read").expect("a batch");
        assert_eq!(batch.errors.iter().map(|error| error.line).collect::<Vec<_>>(), [1]);
        let rest = lines.batch().expect("read").map(|batch| batch.lines).unwrap_or(batch.lines);
        assert_eq!(rest, [(2, b"short".to_vec())]);
    }

    #[test]
    fn a_batch_with_a_module_is_known() {
        let names_modules = |text| lines(text).batch().expect("read").expect("a batch").names_modules();
        assert!(names_modules(b"{\"id\":\"a\"}\n{\"id\":\"a\",\"moduleId\" : \"m\"}"));
        assert!(!names_modules(b"{\"id\":\"a\"}"));
    }

    #[test]
    fn a_file_comes_in_batches() {
        let text: &'static [u8] = "x\n".repeat(BATCH_LINES + 1).into_bytes().leak();
        let mut lines = lines(text);
        let counts = std::iter::from_fn(|| lines.batch().expect("read")).map(|batch| batch.lines.len());
        assert_eq!(counts.collect::<Vec<_>>(), [BATCH_LINES, 1]);
    }
}
