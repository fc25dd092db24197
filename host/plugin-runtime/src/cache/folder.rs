//! A folder of files that are ours alone. Knows nothing of what is in them.
//!
//! The folder is opened once, without following a link, and everything is done in the folder that was opened: whoever
//! exchanges its path afterwards does not lead us elsewhere.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::sweep::Entry;

pub(super) struct Folder {
    path: PathBuf,
    handle: OwnedFd,
}

/// Why a file or folder is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is a symbolic link")]
    Link,
    #[error("it is no folder, or a symbolic link to one")]
    NoFolder,
    #[error("it belongs to user {owner}, and this process runs as user {user}")]
    Owner { owner: u32, user: u32 },
    #[error("others can get at it (its mode is {mode:o}); take that from them with `chmod go-rwx`, or remove it")]
    Mode { mode: u32 },
    #[error("it is not a plain file")]
    Kind,
    #[error("it has {size} bytes; the limit is {limit}")]
    Size { size: u64, limit: u64 },
    #[error("its name cannot be used")]
    Name,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Folder {
    /// Make the folder if it is not there, and take it if nobody else can write to it.
    pub(super) fn open(path: &Path) -> Result<Folder, Refused> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(Refused::NoFolder),
            opened => opened.map_err(io::Error::from)?,
        };
        check(&rustix::fs::fstat(&handle).map_err(io::Error::from)?, WRITABLE)?;
        Ok(Folder { path: path.to_owned(), handle })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file whole, `None` if there is none.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Refused> {
        // Without NONBLOCK, a pipe under that name would make us wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(Refused::Link),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let stat = rustix::fs::fstat(&handle).map_err(io::Error::from)?;
        // Read by others, a key would be no secret.
        check(&stat, OPEN)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Refused::Kind);
        }
        let size = size(&stat);
        if size > limit {
            return Err(Refused::Size { size, limit });
        }
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        // A file that grows meanwhile does not grow our memory.
        File::from(handle).take(limit).read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Put a file of mode 0600 under that name, whole or not at all, also after a loss of power. Whatever had the name,
    /// even a link, is replaced and not written to.
    pub(super) fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let temporary = temporary_name()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&self.handle, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let write = |mut file: File| -> io::Result<()> {
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_all()?;
            Ok(rustix::fs::renameat(&self.handle, &temporary, &self.handle, name)?)
        };
        let written = write(File::from(handle));
        if written.is_err() {
            // The error that matters is the first one.
            let _ = self.remove(&temporary);
        }
        written
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())?)
    }

    /// The file was used just now.
    pub(super) fn touch(&self, name: &str) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        };
        Ok(rustix::fs::utimensat(&self.handle, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Every file that is written whole.
    pub(super) fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for name in self.names()? {
            if name.starts_with(TEMPORARY) {
                continue;
            }
            // One that has gone since is as good as not there.
            if let Ok(stat) = rustix::fs::statat(&self.handle, &name, AtFlags::SYMLINK_NOFOLLOW)
                && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
            {
                entries.push(Entry { name, size: size(&stat), used: modified(&stat) });
            }
        }
        Ok(entries)
    }

    /// Remove what a process that ended early was about to write.
    pub(super) fn remove_half_written(&self) -> io::Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with(TEMPORARY)) {
            self.remove(name)?;
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.handle)? {
            // What is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// Whether it is this user's, and gives nobody else what is `forbidden`. What root does is nobody's to check.
fn check(stat: &Stat, forbidden: u32) -> Result<(), Refused> {
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user {
        return Err(Refused::Owner { owner: stat.st_uid, user });
    }
    if stat.st_mode & forbidden != 0 {
        return Err(Refused::Mode { mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn modified(stat: &Stat) -> SystemTime {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

fn temporary_name() -> io::Result<String> {
    let mut random = [0; 8];
    SystemRandom::new().fill(&mut random).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(format!("{TEMPORARY}{:016x}", u64::from_ne_bytes(random)))
}

/// Mode bits with which others can write.
const WRITABLE: u32 = 0o022;
/// Mode bits with which others can do anything at all. Files are written without.
const OPEN: u32 = 0o077;
/// How the names of files begin that are not written whole yet.
const TEMPORARY: &str = ".new-";
