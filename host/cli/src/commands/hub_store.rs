//! `latch hub index`, `backup`, `import` and `export`.

mod import;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use embedded_hub::import::{ExportError, Exported, HubReader, OfflineHub};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::events::encoded;
use crate::args::{IndexCommand, StoreCommand};
use crate::context::Context;
use crate::data_folder::DataFolder;
use crate::exit::Unreachable;
use crate::output::{document, line};
use crate::progress;

/// The store in the data folder.
const STORE: &str = "hub.db";

pub(super) async fn run(command: StoreCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        StoreCommand::Index(command) => index(command, context).await,
        StoreCommand::Backup { file } => backup(file, context).await,
        StoreCommand::Import { file, skip_existing } => import::run(&file, skip_existing, context).await,
        StoreCommand::Export { file, without_keys } => export(file, !without_keys, context).await,
    }
}

/// Who writes the hub's store: the hub, if it runs, else this process.
enum Owner {
    Running,
    Offline { hub: OfflineHub, _folder: DataFolder },
}

impl Owner {
    async fn find(context: &Context) -> anyhow::Result<Owner> {
        match context.admin().get("/store/indexes").await {
            Ok(_) => Ok(Owner::Running),
            Err(error) if error.is::<Unreachable>() => {
                let folder = DataFolder::open(&context.data)?;
                let hub = OfflineHub::open(folder.path()).await?;
                Ok(Owner::Offline { hub, _folder: folder })
            }
            Err(error) => Err(error),
        }
    }

    async fn close(self) {
        if let Owner::Offline { hub, .. } = self {
            hub.close().await;
        }
    }
}

async fn index(command: IndexCommand, context: &Context) -> anyhow::Result<()> {
    require_store(&context.data)?;
    let owner = Owner::find(context).await?;
    let done = change_indexes(&owner, &command, context).await;
    owner.close().await;
    let answer = done?;
    if context.json {
        return document(&answer);
    }
    match &command {
        IndexCommand::List => {
            let paths = answer.as_array().map(Vec::as_slice).unwrap_or_default().iter();
            paths.filter_map(Value::as_str).try_for_each(line)
        }
        IndexCommand::Add { path } if answer["added"] == json!(true) => line(&format!("indexed {path}")),
        IndexCommand::Add { path } => line(&format!("{path} is indexed already")),
        IndexCommand::Remove { path } if answer["removed"] == json!(true) => {
            line(&format!("{path} is indexed no more"))
        }
        IndexCommand::Remove { path } => {
            bail!("there is no index of {path}; `latch hub index list` names those there are")
        }
    }
}

async fn change_indexes(owner: &Owner, command: &IndexCommand, context: &Context) -> anyhow::Result<Value> {
    let admin = context.admin();
    let of = |path: &str| format!("/store/indexes?path={}", encoded(path));
    Ok(match (owner, command) {
        (Owner::Running, IndexCommand::List) => admin.get("/store/indexes").await?,
        (Owner::Running, IndexCommand::Add { path }) => admin.post(&of(path), &Value::Null).await?,
        (Owner::Running, IndexCommand::Remove { path }) => admin.delete(&of(path)).await?,
        (Owner::Offline { hub, .. }, IndexCommand::List) => json!(hub.indexes().await?),
        (Owner::Offline { hub, .. }, IndexCommand::Add { path }) => {
            json!({"path": path, "added": hub.add_index(path).await?})
        }
        (Owner::Offline { hub, .. }, IndexCommand::Remove { path }) => {
            json!({"path": path, "removed": hub.remove_index(path).await?})
        }
    })
}

/// Say that there is no hub, rather than making one.
fn require_store(data: &Path) -> anyhow::Result<()> {
    let store = data.join(STORE);
    if store.exists() {
        return Ok(());
    }
    let text = format!(
        "no hub: {} does not exist\nhint: name the data folder of one with --data, or start one with `latch hub`",
        store.display()
    );
    bail!(Unreachable(text))
}

async fn backup(file: PathBuf, context: &Context) -> anyhow::Result<()> {
    require_store(&context.data)?;
    let (data, json) = (context.data.clone(), context.json);
    let (count, file) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let reader = HubReader::open(&data)?;
        reader.backup(&file)?;
        Ok((reader.count()?, file))
    })
    .await??;
    if json {
        return document(&json!({"file": file, "devices": count.devices, "modules": count.modules}));
    }
    line(&format!("copied the hub's store to {}", file.display()))
}

async fn export(file: PathBuf, with_keys: bool, context: &Context) -> anyhow::Result<()> {
    require_store(&context.data)?;
    let data = context.data.clone();
    let to_stdout = file.as_os_str() == "-";
    let count = tokio::task::spawn_blocking(move || write_export(&data, &file, with_keys).map(|count| (count, file)));
    let (count, file) = count.await??;
    match (to_stdout, context.json) {
        (true, _) => Ok(()),
        (false, true) => document(&json!({"file": file, "devices": count.devices, "modules": count.modules})),
        (false, false) => line(&format!("exported {} to {}", number_of(count.devices, count.modules), file.display())),
    }
}

/// `3 devices`, or with modules `3 devices and 1 modules`.
fn number_of(devices: u64, modules: u64) -> String {
    match modules {
        0 => format!("{devices} devices"),
        _ => format!("{devices} devices and {modules} modules"),
    }
}

fn write_export(data: &Path, file: &Path, with_keys: bool) -> anyhow::Result<Exported> {
    let reader = HubReader::open(data)?;
    let expected = reader.count()?;
    let bar = progress::count_bar("exported", expected.devices + expected.modules);
    if file.as_os_str() == "-" {
        let written =
            write_lines(&reader, with_keys, BufWriter::new(io::stdout().lock()), &bar).map(|(count, _)| count);
        return match written {
            // Whoever read it has had enough.
            Err(ExportError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exported::default()),
            written => Ok(written?),
        };
    }
    if file.exists() {
        bail!("{} exists already; an export overwrites nothing", file.display());
    }
    // Under its name only once it is whole.
    let partial = file.with_added_extension("partial");
    let written = new_private(&partial).and_then(|to| {
        let (count, to) = write_lines(&reader, with_keys, BufWriter::new(to), &bar)?;
        to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&partial, file)?;
        Ok(count)
    });
    if written.is_err() {
        // The reason of the failure matters more than a left-over, which the next export overwrites.
        drop(fs::remove_file(&partial));
    }
    written.with_context(|| format!("cannot export to {}", file.display()))
}

fn write_lines<W: Write>(
    reader: &HubReader,
    with_keys: bool,
    mut to: W,
    bar: &ProgressBar,
) -> Result<(Exported, W), ExportError> {
    let count = reader.export(with_keys, |text| {
        bar.inc(1);
        writeln!(to, "{text}")
    })?;
    to.flush()?;
    bar.finish_and_clear();
    Ok((count, to))
}

fn new_private(path: &Path) -> anyhow::Result<File> {
    Ok(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?)
}
