//! The plugin directory on disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process;
use std::time::SystemTime;

use crate::version::LoadError;

/// What tells that a file has changed, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    /// Where there is one: another file under the same name, as after a rename.
    identity: u64,
}

/// The plugin files of a directory, by their names without `.wasm`.
pub(super) type Listing = BTreeMap<String, Stamp>;

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        #[cfg(unix)]
        let identity = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let identity = 0;
        Stamp { length: metadata.len(), modified: metadata.modified().ok(), identity }
    }

    #[cfg(test)]
    pub(super) fn sample(length: u64) -> Stamp {
        Stamp { length, modified: None, identity: 0 }
    }
}

pub(super) fn file_name(stem: &str) -> String {
    format!("{stem}.{EXTENSION}")
}

pub(super) fn list(directory: &Path) -> io::Result<Listing> {
    let mut listing = Listing::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(stem) = plugin_stem(&path) else { continue };
        // Follows links. A file that has gone since, or cannot be looked at, is as good as not there.
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
        {
            listing.insert(stem.to_owned(), Stamp::of(&metadata));
        }
    }
    Ok(listing)
}

/// Read a file and tell its stamp; none if it changed while it was read.
pub(super) fn read(path: &Path, size_limit: usize) -> (Result<Vec<u8>, LoadError>, Option<Stamp>) {
    let unreadable = |error: io::Error| LoadError::File { action: "read", reason: error.to_string() };
    let stamp = || fs::metadata(path).map(|metadata| Stamp::of(&metadata));
    let before = match stamp() {
        Ok(before) => before,
        Err(error) => return (Err(unreadable(error)), None),
    };
    if before.length > size_limit as u64 {
        return (Err(LoadError::TooLarge { size: before.length, limit: size_limit }), Some(before));
    }
    let mut wasm = Vec::new();
    let read = File::open(path).and_then(|file| file.take(before.length + 1).read_to_end(&mut wasm));
    match read {
        Ok(_) => (Ok(wasm), stamp().ok().filter(|after| *after == before)),
        Err(error) => (Err(unreadable(error)), Some(before)),
    }
}

/// Put `wasm` under `path`, so that whoever looks sees the old file or the new one, also after a loss of power.
pub(super) fn write(path: &Path, wasm: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or("plugin");
    let temporary = directory.join(format!(".{name}.{}", process::id()));
    let written = write_new(&temporary, wasm).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// Remove what [`write`] left in `directory` when its process was killed. To be called before this process writes
/// there.
pub(super) fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let writer = name.to_str().and_then(writer);
        // A file of this process's number was written by an earlier one: none of this one's is there yet.
        if writer.is_some_and(|writer| writer == process::id() || !is_running(writer)) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            tracing::info!(file = %entry.path().display(), "removed what an earlier host left half-written");
        }
    }
    Ok(())
}

/// The process that wrote a temporary file, if the name is one of [`write`]'s.
fn writer(name: &str) -> Option<u32> {
    let (target, process) = name.strip_prefix('.')?.rsplit_once('.')?;
    let is_ours = Path::new(target).extension() == Some(OsStr::new(EXTENSION)) || target == INDEX;
    let number = process.parse().ok().filter(|number: &u32| number.to_string() == process);
    number.filter(|_| is_ours)
}

/// Where it cannot be told, every process runs.
fn is_running(process: u32) -> bool {
    !cfg!(target_os = "linux") || Path::new("/proc").join(process.to_string()).exists()
}

fn write_new(path: &Path, wasm: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(wasm)?;
    file.sync_all()
}

fn plugin_stem(path: &Path) -> Option<&str> {
    let plugin = path.extension() == Some(OsStr::new(EXTENSION));
    let stem = path.file_stem()?.to_str()?;
    (plugin && !stem.starts_with('.')).then_some(stem)
}

const EXTENSION: &str = "wasm";
/// What a folder of versions has beside components.
pub(super) const INDEX: &str = "index.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_processes_that_are_gone_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = process::id();
        // Above what a process can have.
        let gone = u32::MAX;
        let (left, parent) = (format!(".lock-door.wasm.{own}"), std::os::unix::process::parent_id());
        let removed = [left, format!(".lock-door.wasm.{gone}"), format!(".index.json.{gone}")];
        let kept = [
            format!(".lock-door.wasm.{parent}"),
            format!("lock-door.wasm.{gone}"),
            format!(".lock-door.txt.{gone}"),
            format!(".lock-door.wasm.0{gone}"),
            format!(".wasm.{gone}"),
            ".lock-door.wasm".to_owned(),
            ".lock-door.wasm.swp".to_owned(),
        ];
        for name in removed.iter().chain(&kept) {
            fs::write(folder.path().join(name), "x").expect("written");
        }
        let directory = format!(".folder.wasm.{gone}");
        fs::create_dir(folder.path().join(&directory)).expect("made");
        remove_leftovers(folder.path()).expect("removed");
        let left = fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let mut left: Vec<_> = left.map(|name| name.into_string().expect("text")).collect();
        let mut expected: Vec<_> = kept.into_iter().chain([directory]).collect();
        left.sort();
        expected.sort();
        assert_eq!(left, expected);
    }
}
