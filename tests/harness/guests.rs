//! The plugins that tests run, built once.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::{Process, lock, repository, target};

/// Where the guests are, for a test process whose parent has built them.
pub(crate) const GUESTS_VARIABLE: &str = "LATCH_TEST_GUESTS";
/// From nothing: the toolchain's target, the dependencies, all plugins.
const BUILD_BOUND: Duration = Duration::from_secs(600);

/// The folder with `NAME.wasm` of every plugin, and `fixtures` in it, built by `latch plugin build` if need be. Not to be
/// changed: other tests read it at the same time. See [`plugin_folder`].
pub(crate) fn guests() -> &'static Path {
    static GUESTS: OnceLock<PathBuf> = OnceLock::new();
    GUESTS.get_or_init(|| env::var_os(GUESTS_VARIABLE).map_or_else(build, PathBuf::from))
}

/// Where [`guests`] puts them, built or not.
pub(crate) fn guests_folder() -> PathBuf {
    target().join("plugins")
}

/// A folder of the test's own with the named plugins, given as they lie in the guests' folder: `lock-door`,
/// `next/lock-door`, `fixtures/trap`.
pub(crate) fn plugin_folder(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for name in names {
        let source = guests().join(format!("{name}.wasm"));
        let file_name = source.file_name().expect("a plugin has a name");
        let copied = fs::copy(&source, folder.path().join(file_name));
        copied.unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    }
    folder
}

fn build() -> PathBuf {
    let _lock = lock("test-guests.lock");
    let out = guests_folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_latch"));
    command.args(["plugin", "build", "--fixtures", "--out"]).arg(&out);
    command.arg("--tools").arg(target().join("tools")).current_dir(repository());
    Process::spawn("latch plugin build", &mut command).succeed(BUILD_BOUND);
    out
}
