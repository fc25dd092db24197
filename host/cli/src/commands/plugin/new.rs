//! `latch plugin new`: a project that builds, with a test, to be changed into something of use.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use plugin_runtime::PluginName;
use serde_json::json;

use crate::args::{NewArgs, NewLanguage};
use crate::context::Context;
use crate::output::{document, line};

/// A file of a project: where it goes, and its text, in which [`NAME`] stands for the plugin's name.
type File = (&'static str, &'static str);

pub(super) fn run(args: &NewArgs, context: &Context) -> anyhow::Result<()> {
    check_name(&args.name)?;
    let folder = args.into.join(&args.name);
    if folder.exists() {
        bail!("{} exists already", folder.display());
    }
    let own = match args.lang {
        NewLanguage::Rust => RUST,
        NewLanguage::Js => JAVASCRIPT,
        NewLanguage::Python => PYTHON,
        NewLanguage::C => C,
    };
    let files: Vec<_> = own.iter().chain(COMMON).chain(CONTRACT).collect();
    for (path, text) in &files {
        write(&folder.join(path), &text.replace(NAME, &args.name))?;
    }
    let shown = folder.display();
    if context.json {
        let paths: Vec<_> = files.iter().map(|(path, _)| path).collect();
        return document(&json!({ "folder": folder, "files": paths }));
    }
    line(&format!("{shown} is there. To build and test it:"))?;
    line(&format!("  latch plugin build --workspace {shown}"))?;
    line(&format!("  latch plugin test {shown}/tests --plugin target/plugins/{}.wasm", args.name))
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    file.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(file, text))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The name is also a cargo package's, where the language is Rust; so one rule for all.
fn check_name(name: &str) -> anyhow::Result<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if PluginName::parse(name).is_err()
        || !name.bytes().all(good)
        || !name.starts_with(|first: char| first.is_ascii_lowercase())
    {
        bail!("{name:?} is no name for a plugin\nhint: lower-case letters, digits and hyphens, a letter first");
    }
    Ok(())
}

const NAME: &str = "{{name}}";

const COMMON: &[File] = &[
    (".gitignore", include_str!("new/common/gitignore")),
    ("README.md", include_str!("new/common/README.md")),
    ("tests/hello.toml", include_str!("new/common/hello.toml")),
];

const RUST: &[File] =
    &[("Cargo.toml", include_str!("new/rust/Cargo.toml")), ("src/lib.rs", include_str!("new/rust/lib.rs"))];

const JAVASCRIPT: &[File] =
    &[("latch-plugin.toml", include_str!("new/js/latch-plugin.toml")), ("plugin.js", include_str!("new/js/plugin.js"))];

const PYTHON: &[File] = &[
    ("latch-plugin.toml", include_str!("new/python/latch-plugin.toml")),
    ("plugin.py", include_str!("new/python/plugin.py")),
];

const C: &[File] = &[
    ("latch-plugin.toml", include_str!("new/c/latch-plugin.toml")),
    ("plugin.c", include_str!("new/c/plugin.c")),
    ("json.c", include_str!("../../../../../plugins/lock-door-c/json.c")),
    ("json.h", include_str!("../../../../../plugins/lock-door-c/json.h")),
];

/// The whole contract, so that a project stands alone.
const CONTRACT: &[File] = &[
    ("wit/lifecycle.wit", include_str!("../../../../../wit/plugin/lifecycle.wit")),
    ("wit/messages.wit", include_str!("../../../../../wit/plugin/messages.wit")),
    ("wit/methods.wit", include_str!("../../../../../wit/plugin/methods.wit")),
    ("wit/reactions.wit", include_str!("../../../../../wit/plugin/reactions.wit")),
    ("wit/ticks.wit", include_str!("../../../../../wit/plugin/ticks.wit")),
    ("wit/worlds.wit", include_str!("../../../../../wit/plugin/worlds.wit")),
    ("wit/deps/iothub-device/config.wit", include_str!("../../../../../wit/device/config.wit")),
    ("wit/deps/iothub-device/log.wit", include_str!("../../../../../wit/device/log.wit")),
    ("wit/deps/iothub-device/state.wit", include_str!("../../../../../wit/device/state.wit")),
    ("wit/deps/iothub-device/telemetry.wit", include_str!("../../../../../wit/device/telemetry.wit")),
    ("wit/deps/iothub-device/timers.wit", include_str!("../../../../../wit/device/timers.wit")),
    ("wit/deps/iothub-device/twin.wit", include_str!("../../../../../wit/device/twin.wit")),
    ("wit/deps/iothub-device/types.wit", include_str!("../../../../../wit/device/types.wit")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_suit_every_language() {
        for good in ["door", "lock-door-2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "Door", "2door", "-door", "a b", "a.b", "../door", "dörr"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_project_carries_the_whole_contract() {
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        for (source, target) in [("plugin", "wit"), ("device", "wit/deps/iothub-device")] {
            for entry in wit.join(source).read_dir().expect("the contract") {
                let path = format!("{target}/{}", entry.expect("readable").file_name().to_string_lossy());
                assert!(CONTRACT.iter().any(|(carried, _)| *carried == path), "{path}");
            }
        }
    }
}
