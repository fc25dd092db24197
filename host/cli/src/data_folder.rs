//! The folder that a hub or host keeps everything in: private, and of one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use iothub_protocol::connection_string::{DeviceConnectionString, ServiceConnectionString};
use iothub_protocol::id::DeviceId;

use crate::jobs::JOURNAL;

/// The policy `iothubowner`, for back ends.
pub(crate) const SERVICE_FILE: &str = "service.connstr";
pub(crate) const ADMIN_SOCKET: &str = "admin.sock";
const ADMIN_TOKEN: &str = "admin.token";
/// Of which hub the jobs in the folder are, where they are not an embedded hub's own.
const JOBS_HUB: &str = "jobs.hub";
const DEVICES: &str = "devices";
const LOCK: &str = "lock";

/// A data folder that this process holds.
pub(crate) struct DataFolder {
    path: PathBuf,
    /// Held until the process ends, however it ends.
    _lock: File,
    /// Two writers of one file would take each other's temporary file.
    writing: Mutex<()>,
}

impl DataFolder {
    /// Make the folder if it is not there, and take it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<DataFolder> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("cannot create the data folder {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make the data folder {} private", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("cannot use the data folder {}", path.display()))?;
        let lock = lock(&path)?;
        let devices = path.join(DEVICES);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&devices)
            .with_context(|| format!("cannot create {}", devices.display()))?;
        Ok(DataFolder { path, _lock: lock, writing: Mutex::new(()) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write_service(&self, connection: &ServiceConnectionString) -> anyhow::Result<()> {
        self.write_private(Path::new(SERVICE_FILE), &format!("{}\n", connection.reveal()))
    }

    pub(crate) fn write_device(&self, connection: &DeviceConnectionString) -> anyhow::Result<()> {
        self.write_private(&device_file(&connection.device_id), &format!("{}\n", connection.reveal()))
    }

    pub(crate) fn remove_device(&self, id: &DeviceId) -> anyhow::Result<()> {
        let path = self.path.join(device_file(id));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Keep jobs of that hub, host and port, in this folder. They say nothing of their hub themselves, and must not go on
    /// at another one because a variable has another value.
    ///
    /// # Errors
    /// If there are jobs of another hub.
    pub(crate) fn keep_jobs_of(&self, hub: &str) -> anyhow::Result<()> {
        let kept = match self.jobs_hub()? {
            Some(kept) if kept.eq_ignore_ascii_case(hub) => return Ok(()),
            Some(kept) => format!("those of the hub {kept}, not of {hub}"),
            None if self.path.join(JOURNAL).exists() => "an embedded hub's own".to_owned(),
            None => return self.write_private(Path::new(JOBS_HUB), &format!("{hub}\n")),
        };
        bail!("the jobs in {} are {kept}\nhint: use another folder with --data", self.path.display())
    }

    /// Keep an embedded hub's own jobs in this folder.
    ///
    /// # Errors
    /// If there are jobs of another hub.
    pub(crate) fn keep_own_jobs(&self) -> anyhow::Result<()> {
        match self.jobs_hub()? {
            None => Ok(()),
            Some(kept) => bail!(
                "the jobs in {} are those of the hub {kept}, on which `latch run --jobs` runs them\nhint: use another \
                 folder with --data",
                self.path.display()
            ),
        }
    }

    fn jobs_hub(&self) -> anyhow::Result<Option<String>> {
        let path = self.path.join(JOBS_HUB);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The token for the admin API over TCP, made the first time.
    pub(crate) fn admin_token(&self) -> anyhow::Result<String> {
        let path = self.path.join(ADMIN_TOKEN);
        if let Ok(token) = fs::read_to_string(&path)
            && token.trim().len() >= 32
        {
            return Ok(token.trim().to_owned());
        }
        let token = iothub_protocol::sas::SharedKey::from_random(rand::random()).to_base64();
        self.write_private(Path::new(ADMIN_TOKEN), &format!("{token}\n"))?;
        Ok(token)
    }

    /// Write a file of mode 0600 whole or not at all.
    fn write_private(&self, name: &Path, content: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if fs::read_to_string(&path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        let temporary = path.with_added_extension("new");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(content.as_bytes())?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Ids cannot hold a slash, so this stays inside the folder.
fn device_file(id: &DeviceId) -> PathBuf {
    Path::new(DEVICES).join(format!("{id}.connstr"))
}

/// Where a device's connection string is.
pub(crate) fn device_path(data: &Path, id: &DeviceId) -> PathBuf {
    data.join(device_file(id))
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = path.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&file);
    let mut lock = open.with_context(|| format!("cannot open {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // If it cannot be read, the message does without.
            let _ = lock.read_to_string(&mut holder);
            bail!(
                "the data folder {} is in use by process {}\nhint: stop that one, or use another folder with --data",
                path.display(),
                holder.trim()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", file.display()));
        }
    }
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", std::process::id())?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_the_jobs_of_one_hub() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = |name: &str| DataFolder::open(&parent.path().join(name)).expect("taken");
        let run = folder("run");
        run.keep_own_jobs().expect("none are there");
        for _ in 0..2 {
            run.keep_jobs_of("a.azure-devices.net").expect("the same hub");
        }
        let error = run.keep_jobs_of("b.azure-devices.net").expect_err("another hub").to_string();
        assert!(error.contains("those of the hub a.azure-devices.net, not of b.azure-devices.net"), "{error}");
        let error = run.keep_own_jobs().expect_err("another hub").to_string();
        assert!(error.contains("those of the hub a.azure-devices.net"), "{error}");
        let hub = folder("hub");
        fs::write(hub.path().join(JOURNAL), "").expect("written");
        let error = hub.keep_jobs_of("a.azure-devices.net").expect_err("its own").to_string();
        assert!(error.contains("an embedded hub's own"), "{error}");
    }

    #[test]
    fn a_folder_is_private_and_has_one_owner() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("data");
        let held = DataFolder::open(&path).expect("taken");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700);
        let error = DataFolder::open(&path).map(|_| ()).expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        let token = held.admin_token().expect("a token");
        assert_eq!(held.admin_token().expect("the same"), token);
        let mode = fs::metadata(path.join(ADMIN_TOKEN)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(held);
        // A child that another test has forked and that has not yet become its program still has our descriptors.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while let Err(error) = DataFolder::open(&path).map(|_| ()) {
            assert!(std::time::Instant::now() < deadline, "not free again: {error}");
            std::thread::yield_now();
        }
    }
}
