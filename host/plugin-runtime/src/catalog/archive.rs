//! The folder that keeps the components of earlier versions, and the ledger, across restarts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files;
use super::ledger::Ledger;
use crate::version;

/// `NAME/HASH.wasm` for each version, and `index.json`.
pub(super) struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Make the folder if it is not there, and read what it keeps.
    pub(super) fn open(folder: PathBuf) -> io::Result<(Archive, Ledger)> {
        fs::create_dir_all(&folder)?;
        let archive = Archive { folder };
        if let Err(error) = files::remove_leftovers(&archive.folder) {
            tracing::warn!(folder = %archive.folder.display(), %error, "leftovers could not be removed");
        }
        let ledger = match fs::read(archive.index()) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                let text = format!("{}: {error}; without this file the host starts anew", archive.index().display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ledger::default(),
            Err(error) => return Err(error),
        };
        archive.sweep(&ledger)?;
        Ok((archive, ledger))
    }

    /// Keep a component. One that is kept already is not written again.
    pub(super) fn keep(&self, name: &str, hash: &str, wasm: &[u8]) -> io::Result<()> {
        let path = self.path(name, hash);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == wasm.len() as u64) {
            return Ok(());
        }
        fs::create_dir_all(self.folder.join(name))?;
        files::write(&path, wasm)
    }

    pub(super) fn read(&self, name: &str, hash: &str) -> io::Result<Vec<u8>> {
        let wasm = fs::read(self.path(name, hash))?;
        if version::hash(&wasm) == hash {
            return Ok(wasm);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the kept component is damaged"))
    }

    /// Write the ledger, then remove the components that it no longer lists.
    pub(super) fn save(&self, ledger: &Ledger) -> io::Result<()> {
        files::write(&self.index(), &serde_json::to_vec_pretty(ledger)?)?;
        if let Err(error) = self.sweep(ledger) {
            tracing::warn!(folder = %self.folder.display(), %error, "old plugin versions could not be removed");
        }
        Ok(())
    }

    fn sweep(&self, ledger: &Ledger) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let folder = entry?.path();
            let Some(name) = folder.file_name().and_then(|name| name.to_str()).filter(|_| folder.is_dir()) else {
                continue;
            };
            let versions = ledger.get(name).map(|record| record.versions.as_slice()).unwrap_or_default();
            for file in fs::read_dir(&folder)? {
                let path = file?.path();
                let hash = path.file_stem().and_then(|stem| stem.to_str());
                if !versions.iter().any(|kept| Some(kept.hash.as_str()) == hash) {
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    fn index(&self) -> PathBuf {
        self.folder.join(files::INDEX)
    }

    fn path(&self, name: &str, hash: &str) -> PathBuf {
        self.folder.join(Path::new(name)).join(files::file_name(hash))
    }
}
