//! Where cargo keeps what it compiled.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// One of cargo's target folders.
///
/// Cargo names a component after its package alone, so two packages of one name, or two sets of features, overwrite
/// each other in one folder, and cargo then takes the one for the other. Hence a folder for each workspace and variant.
pub(super) struct TargetFolder<'a> {
    /// Holds the folders of one toolchain.
    pub(super) root: &'a Path,
    pub(super) workspace: &'a Path,
    pub(super) variant: Option<&'static str>,
}

/// A target folder that exists.
pub(super) struct Prepared {
    pub(super) path: PathBuf,
    /// Whether everything is still to be compiled.
    pub(super) is_new: bool,
}

impl TargetFolder<'_> {
    /// Makes sure that the folder is there, at first as a copy of a sibling. Much is alike in all of them: the standard
    /// library and the macros, minutes of work; and cargo checks each piece for freshness anyhow.
    pub(super) fn prepare(&self) -> anyhow::Result<Prepared> {
        let path = self.root.join(self.name());
        if path.is_dir() {
            return Ok(Prepared { path, is_new: false });
        }
        let sibling = latest_sibling(self.root);
        let prepare = || -> io::Result<()> {
            // Under another name until it is whole.
            let partial = self.root.join(".partial");
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            match &sibling {
                Some(sibling) => copy_folder(sibling, &partial)?,
                None => fs::create_dir_all(&partial)?,
            }
            fs::rename(&partial, &path)
        };
        prepare().with_context(|| format!("cannot prepare {}", path.display()))?;
        Ok(Prepared { path, is_new: sibling.is_none() })
    }

    fn name(&self) -> String {
        let variant = self.variant.map(|variant| format!("-{variant}")).unwrap_or_default();
        format!("{}{variant}", folder_name(self.workspace))
    }
}

/// A name for what is built of `folder`: readable, and different for every folder.
pub(super) fn folder_name(folder: &Path) -> String {
    let readable = folder.file_name().unwrap_or_default().to_string_lossy();
    let hash = fnv1a(folder.as_os_str().as_encoded_bytes());
    format!("{readable}-{hash:016x}")
}

/// The folder under `root` that was changed last.
fn latest_sibling(root: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(root).ok()?.flatten();
    let whole = folders.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let dated = whole.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some((metadata.modified().ok()?, metadata.is_dir().then(|| entry.path())?))
    });
    dated.max().map(|(_, path)| path)
}

/// Copies with the times of modification, by which cargo knows what is fresh.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            copy_folder(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), &copy)?;
            File::open(&copy)?.set_modified(metadata.modified()?)?;
        }
    }
    Ok(())
}

/// A hash that stays the same from one Rust to the next, as the standard library's does not.
/// <http://www.isthe.com/chongo/tech/comp/fnv/>
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_workspaces_and_variants_apart() {
        let name = |workspace: &str, variant| {
            TargetFolder { root: Path::new("/guests"), workspace: Path::new(workspace), variant }.name()
        };
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c, "the published value");
        assert!(name("/a/plugins", None).starts_with("plugins-"));
        assert_ne!(name("/a/plugins", None), name("/b/plugins", None));
        assert_eq!(name("/a/plugins", Some("next")), format!("{}-next", name("/a/plugins", None)));
    }

    #[test]
    fn a_new_folder_starts_as_a_copy_of_its_sibling() {
        let root = std::env::temp_dir().join(format!("latch-target-folder-{}", std::process::id()));
        let prepare =
            |variant| TargetFolder { root: &root, workspace: Path::new("/plugins"), variant }.prepare().unwrap();
        let first = prepare(None);
        assert!(first.is_new);
        fs::create_dir(first.path.join("deps")).unwrap();
        fs::write(first.path.join("deps/std"), "compiled").unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::open(first.path.join("deps/std")).unwrap().set_modified(old).unwrap();

        let second = prepare(Some("next"));
        assert!(!second.is_new);
        let copy = second.path.join("deps/std");
        assert_eq!(fs::read(&copy).unwrap(), b"compiled");
        assert_eq!(fs::metadata(&copy).unwrap().modified().unwrap(), old);
        assert!(!prepare(None).is_new);
        fs::remove_dir_all(&root).unwrap();
    }
}
