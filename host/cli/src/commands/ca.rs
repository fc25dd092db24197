//! `latch hub ca`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::events::encoded;
use crate::args::CaCommand;
use crate::context::Context;
use crate::output::{cell, document, line, table};

/// No certificate is so large; what is, is the wrong file.
const MAX_FILE: u64 = 256 * 1024;

pub(super) async fn run(command: CaCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        CaCommand::Add { file, name } => {
            let name = match name {
                Some(name) => name,
                None => stem(&file)?.to_owned(),
            };
            let added = context.admin().put(&path(&name), read(&file)?).await?;
            if context.json {
                return document(&added);
            }
            line(&format!("devices of {} may connect until {}", cell(&added["subject"]), cell(&added["expiry"])))
        }
        CaCommand::List => {
            let all = context.admin().get("/certificates").await?;
            if context.json {
                return document(&all);
            }
            let columns = ["name", "subject", "expiry", "thumbprint"];
            let rows = all.as_array().map(Vec::as_slice).unwrap_or_default().iter();
            let row = |authority: &Value| columns.iter().map(|column| cell(&authority[column])).collect();
            table(&["NAME", "SUBJECT", "EXPIRES", "THUMBPRINT"], &rows.map(row).collect::<Vec<_>>())
        }
        CaCommand::Remove { name } => {
            let removed = context.admin().delete(&path(&name)).await?;
            if context.json { document(&removed) } else { line(&format!("removed {name}")) }
        }
    }
}

fn path(name: &str) -> String {
    format!("/certificates/{}", encoded(name))
}

fn stem(file: &Path) -> anyhow::Result<&str> {
    let stem = file.file_stem().and_then(|stem| stem.to_str());
    stem.with_context(|| format!("{} has no name to call the authority by; give one by --name", file.display()))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", file.display());
    if fs::metadata(file).with_context(cannot)?.len() > MAX_FILE {
        bail!("{} is too large for a certificate", file.display());
    }
    fs::read(file).with_context(cannot)
}
