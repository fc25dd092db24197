//! What the tests of the binary `latch` share: running it, waiting for it, and building the guests that it runs.
//!
//! A test target takes it in by `#[path = "../harness/mod.rs"] mod harness;`. It is a module and not a crate, because
//! only the test targets of the crate that holds the binary are told where cargo has just built it.
#![allow(dead_code, unused_imports, reason = "each test target uses a part of it")]

mod certificates;
mod guests;
mod latch;
mod process;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use certificates::{Certificate, Valid};
pub(crate) use guests::{GUESTS_VARIABLE, guests, guests_folder, plugin_folder};
pub(crate) use latch::{FREE_PORTS, Latch, Outcome, latch, latch_command, latch_json, latch_ok, outcome};
pub(crate) use process::{Process, Stream};

/// How long a poll rests between two looks.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer; fails the test, naming `what`, when `bound` has passed.
pub(crate) fn wait_until<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    match poll(bound, &mut look) {
        Some(found) => found,
        None => panic!("{what}: not within {bound:?}"),
    }
}

/// Like [`wait_until`], for a caller that has more to say than that the time is over.
pub(crate) fn poll<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + bound;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        // Nothing unparks a test thread; that it may wake early does no harm.
        thread::park_timeout(POLL_PAUSE);
    }
}

/// The repository.
pub(crate) fn repository() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::canonicalize(cli.join("../..")).expect("the crate lies in the repository")
}

/// Cargo's target folder, wherever the user has put it.
pub(crate) fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's temporary folder lies in the target folder")
}

/// Holds a lock that every test process on this machine's target folder respects, until the file is dropped.
pub(crate) fn lock(name: &str) -> File {
    let path = target().join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).expect("the target folder can be written");
    }
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file
}
