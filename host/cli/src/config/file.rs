//! Where the configuration is: finds the file, and reads the disk for it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::sources::{Sources, Variable};
use super::{FleetConfig, Mistake, read};

/// The file's name where none is given.
pub(crate) const FILE_NAME: &str = "latch.toml";

/// A configuration file that is there, or may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    /// Whether the user asked for it, so that it must be there.
    named: bool,
}

/// What a file says, and what it consists of.
pub(crate) struct Reading {
    pub(crate) config: Result<FleetConfig, ConfigError>,
    /// The file, and the files and folders that it names. A change of any of them is a change of the configuration.
    pub(crate) files: BTreeSet<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub(crate) enum ConfigError {
    Unreadable { file: PathBuf, error: io::Error },
    Mistakes { file: PathBuf, mistakes: Vec<Mistake> },
}

/// What tells that a file or folder has changed, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

impl ConfigFile {
    /// The file that the user names, else the one beside the plugin directory, whether or not it is there.
    pub(crate) fn find(named: Option<&Path>, plugins: Option<&Path>) -> Option<ConfigFile> {
        match (named, plugins) {
            (Some(path), _) => Some(ConfigFile { path: path.to_owned(), named: true }),
            (None, Some(plugins)) => Some(ConfigFile { path: beside(plugins), named: false }),
            (None, None) => None,
        }
    }

    /// Whether it may be missing.
    pub(crate) fn is_optional(&self) -> bool {
        !self.named
    }

    /// Read it and what it names.
    pub(crate) fn read(&self, variable: &Variable<'_>) -> Reading {
        let text = match self.check_owner().and_then(|()| read_file(&self.path)) {
            Ok(text) => text,
            Err(error) => {
                let unreadable = ConfigError::Unreadable { file: self.path.clone(), error };
                return Reading { config: Err(unreadable), files: [self.path.clone()].into() };
            }
        };
        let base = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let sources = Sources {
            base: base.parent().unwrap_or(Path::new("/")),
            read_file: &read_file,
            list_folder: &list_folder,
            variable,
            seen: Default::default(),
        };
        let config = read(&text, &sources);
        let mut files = sources.seen.into_inner();
        files.insert(self.path.clone());
        let mistakes = |mistakes| ConfigError::Mistakes { file: self.path.clone(), mistakes };
        Reading { config: config.map_err(mistakes), files }
    }
}

impl ConfigFile {
    /// A file that nobody asked for, in a folder that others can write into, could be anybody's; and it grants things.
    fn check_owner(&self) -> io::Result<()> {
        let metadata = fs::metadata(&self.path)?;
        if self.named || is_ours(metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw()) {
            return Ok(());
        }
        let text = "it belongs to another user, or others can write it; name it by --config to use it";
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

fn is_ours(owner: u32, mode: u32, user: u32) -> bool {
    const OTHERS_WRITE: u32 = 0o002;
    (owner == user || owner == 0) && mode & OTHERS_WRITE == 0
}

impl ConfigError {
    /// Whether there is no such file.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, ConfigError::Unreadable { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }

    /// A line for each mistake.
    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            ConfigError::Unreadable { file, error } => vec![format!("{} cannot be read: {error}", file.display())],
            ConfigError::Mistakes { file, mistakes } => mistakes.iter().map(|mistake| mistake.told(file)).collect(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ConfigError::Mistakes { file, mistakes } = self {
            let mistakes = if mistakes.len() == 1 { "a mistake" } else { "mistakes" };
            writeln!(f, "{} has {mistakes}", file.display())?;
        }
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Stamp {
    /// None if there is nothing. Follows links.
    pub(crate) fn of(path: &Path) -> Option<Stamp> {
        let metadata = fs::metadata(path).ok()?;
        Some(Stamp { length: metadata.len(), modified: metadata.modified().ok(), inode: metadata.ino() })
    }
}

fn beside(plugins: &Path) -> PathBuf {
    let ends_in_name = plugins.file_name().is_some();
    let plugins = if ends_in_name { plugins.to_owned() } else { plugins.canonicalize().unwrap_or(plugins.to_owned()) };
    plugins.parent().unwrap_or(Path::new("")).join(FILE_NAME)
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {} MiB", MAX_FILE >> 20)));
    }
    Ok(text)
}

fn list_folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
}

/// Connection strings of as many devices as there may be, and some.
const MAX_FILE: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn found(named: Option<&str>, plugins: Option<&str>) -> Option<String> {
        let file = ConfigFile::find(named.map(Path::new), plugins.map(Path::new))?;
        Some(file.path.display().to_string())
    }

    #[test]
    fn the_file_is_the_named_one_or_lies_beside_the_plugins() {
        assert_eq!(found(Some("a/b.toml"), Some("plugins")).as_deref(), Some("a/b.toml"));
        assert_eq!(found(None, Some("plugins")).as_deref(), Some("latch.toml"));
        assert_eq!(found(None, Some("./target/plugins/")).as_deref(), Some("./target/latch.toml"));
        assert_eq!(found(None, Some("/plugins")).as_deref(), Some("/latch.toml"));
        assert_eq!(found(None, None), None);
        let here = std::env::current_dir().expect("a folder").parent().expect("a parent").join(FILE_NAME);
        assert_eq!(found(None, Some(".")), Some(here.display().to_string()));
    }

    #[test]
    fn a_file_of_somebody_else_is_not_taken_unasked() {
        for (owner, mode, expected) in
            [(1000, 0o644, true), (1000, 0o664, true), (1000, 0o666, false), (0, 0o644, true), (1001, 0o600, false)]
        {
            assert_eq!(is_ours(owner, mode, 1000), expected, "{owner} {mode:o}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE_NAME);
        fs::write(&path, "").expect("written");
        let beside = |named| ConfigFile { path: path.clone(), named }.read(&|_| None).config.map(|_| ());
        assert!(beside(false).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("changed");
        let error = beside(false).expect_err("anybody can write it").to_string();
        assert!(error.contains("name it by --config") && beside(true).is_ok(), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE_NAME);
        let named = ConfigFile { path: path.clone(), named: true };
        let error = named.read(&|_| None).config.map(|_| ()).expect_err("missing");
        assert!(error.is_absence() && error.to_string().contains("latch.toml cannot be read: "), "{error}");

        fs::write(&path, "[devices]\nfile = \"ids.txt\"\n").expect("written");
        let reading = named.read(&|_| None);
        let error = reading.config.map(|_| ()).expect_err("missing").to_string();
        assert!(
            error.contains("latch.toml has a mistake\n") && error.contains("latch.toml:2:8: devices.file: "),
            "{error}"
        );
        assert_eq!(reading.files, [path.clone(), folder.path().join("ids.txt")].into(), "what is missing may come");
        fs::write(folder.path().join("ids.txt"), "a\n").expect("written");
        assert!(named.read(&|_| None).config.is_ok_and(|config| config.devices.len() == 1));
    }
}
