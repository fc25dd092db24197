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
