//! The folder of a host in which each plugin has one of its own on each device.

use std::fs::DirBuilder;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iothub_protocol::id::DeviceId;

use crate::name::PluginName;
use crate::version;

/// Where the guest finds it.
pub(crate) const GUEST_PATH: &str = "/data";

/// Make the folder of `plugin` on `device` inside `granted`, if it is not there.
///
/// # Errors
/// Says which folder cannot be made, and why.
pub(crate) async fn make(
    granted: &Path,
    plugin: &PluginName,
    device: &DeviceId,
    limit: Duration,
) -> Result<PathBuf, String> {
    let folder = granted.join(plugin.as_str()).join(component(device));
    let making = folder.clone();
    // A disk may be slow, and a disk of another machine may not answer at all.
    let made = tokio::task::spawn_blocking(move || create(&making));
    let failed = |reason: &dyn std::fmt::Display| format!("its folder {} cannot be made: {reason}", folder.display());
    match tokio::time::timeout(limit, made).await {
        Ok(Ok(Ok(()))) => Ok(folder),
        Ok(Ok(Err(error))) => Err(failed(&error)),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed(&"the disk does not answer")),
    }
}

fn create(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// A device's id as one component of a path. Ids may be `..` or begin with a dot, and may be longer than a file's name
/// once they are escaped. No two have the same.
fn component(device: &DeviceId) -> String {
    let mut name = String::with_capacity(device.as_str().len());
    for (position, character) in device.as_str().chars().enumerate() {
        if character.is_ascii_alphanumeric() || "-_".contains(character) || (character == '.' && position > 0) {
            name.push(character);
        } else {
            name.push_str(&format!("%{:02X}", u32::from(character)));
        }
    }
    if name.len() > LIMIT {
        // After a percent sign there are digits otherwise.
        name.truncate(LIMIT - HASH_DIGITS - 2);
        let hash = version::hash(device.as_str().as_bytes());
        name.push_str(&format!("%-{}", &hash[..HASH_DIGITS]));
    }
    name
}

/// Bytes of a file's name on every file system in use.
const LIMIT: usize = 255;
/// Of 256 bits, 128: no two devices share them by accident, nor by design.
const HASH_DIGITS: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).expect("an id")
    }

    #[test]
    fn each_device_has_a_safe_name_of_its_own() {
        for (id, expect) in [
            ("door-0001", "door-0001"),
            ("A.b_C", "A.b_C"),
            ("..", "%2E."),
            (".", "%2E"),
            ("%2E", "%252E"),
            ("a:b*c?d'", "a%3Ab%2Ac%3Fd%27"),
        ] {
            assert_eq!(component(&device(id)), expect);
        }
        let long = |last: &str| device(&format!("{}{last}", "*".repeat(127)));
        let names: BTreeSet<String> = ["a", "b", "*"].iter().map(|last| component(&long(last))).collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| name.len() == LIMIT && !name.contains('/')), "{names:?}");
    }

    #[tokio::test]
    async fn a_folder_is_made_for_its_owner_only_and_kept() {
        let granted = tempfile::tempdir().expect("a folder");
        let (plugin, device) = (PluginName::parse("lock-door").expect("a name"), device("door-0001"));
        let limit = Duration::from_secs(60);
        let folder = make(granted.path(), &plugin, &device, limit).await.expect("made");
        assert_eq!(folder, granted.path().join("lock-door/door-0001"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            for folder in [&*folder, folder.parent().expect("the plugin's")] {
                assert_eq!(folder.metadata().expect("there").permissions().mode() & 0o777, 0o700);
            }
        }
        std::fs::write(folder.join("kept"), "x").expect("written");
        make(granted.path(), &plugin, &device, limit).await.expect("there already");
        assert!(folder.join("kept").exists());

        std::fs::write(granted.path().join("file"), "x").expect("written");
        let error = make(&granted.path().join("file"), &plugin, &device, limit).await.expect_err("a file");
        assert!(error.contains("file/lock-door/door-0001 cannot be made"), "{error}");
    }
}
