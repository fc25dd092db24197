//! Whatever is wrong is refused with words that help, and nothing that is right suffers.

mod command_line;
mod mqtt;
mod rest;

use std::path::Path;

use crate::harness::latch;

/// The hub goes on as if nothing had been.
fn assert_healthy(data: &Path, after: &str) {
    let list = latch(data, &["device", "list"]);
    assert!(list.code == Some(0) && list.stdout.contains("door-0001"), "after {after}: {list:#?}");
}
