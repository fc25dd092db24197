//! JavaScript: the engine QuickJS with the plugin's source inside, made by componentize-qjs from npm.
//!
//! ComponentizeJS, the other tool for it, takes Mozilla's engine: its components are 12 MB where these are 1 MB, a host
//! takes ten times as long to compile them, and it brings 385 MB of packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::foreign::Build;
use super::{HostEnv, child};

/// What decides about the component beside the plugin's own files.
pub(super) const TOOL: &[&str] = &[LOCK, SCRIPT, PRELUDE];

pub(super) fn componentize(build: &Build, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let node = find(build.host_env, "node")?;
    let tool = build.tools.join("js");
    install(&tool, build.host_env, say)?;
    say(&format!("building {} with componentize-qjs", build.project.label()));
    let mut command = build.host_env.command(&node, &build.project.folder);
    command.arg(tool.join("componentize.mjs")).args(build.project.sources()?).arg(&build.project.folder);
    command.arg(build.wit()).arg(&build.project.manifest.world).arg(build.component());
    let ended = child::run(&mut command)?;
    if !ended.status.success() {
        bail!("componentize-qjs says:\n{}{}", ended.stdout, ended.stderr.trim());
    }
    Ok(())
}

/// Installs exactly what the lock file names, unless it is there.
fn install(tool: &Path, host_env: &HostEnv, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(tool)?;
        FILES.iter().try_for_each(|(name, text)| fs::write(tool.join(name), text))
    };
    write().with_context(|| format!("cannot write to {}", tool.display()))?;
    let mark = tool.join("installed");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == LOCK) {
        return Ok(());
    }
    let npm = find(host_env, "npm")?;
    say("installing componentize-qjs from npm (40 MB)");
    let mut command = host_env.command(&npm, tool);
    command.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    let ended = child::run(&mut command)?;
    if !ended.status.success() {
        bail!(
            "npm could not install componentize-qjs\n{}\nhint: the command was: npm ci, in {}",
            ended.stderr.trim(),
            tool.display()
        );
    }
    fs::write(&mark, LOCK).with_context(|| format!("cannot write {}", mark.display()))
}

fn find(host_env: &HostEnv, program: &str) -> anyhow::Result<PathBuf> {
    host_env.find(program).with_context(|| {
        format!(
            "a plugin in JavaScript is built by Node.js, and there is no `{program}`\n\
             hint: install Node.js 20 or later with npm, from https://nodejs.org or by: sudo apt-get install nodejs npm"
        )
    })
}

const FILES: [(&str, &str); 4] =
    [("package.json", PACKAGE), ("package-lock.json", LOCK), ("componentize.mjs", SCRIPT), ("prelude.js", PRELUDE)];

const PACKAGE: &str = include_str!("tools/js/package.json");
const LOCK: &str = include_str!("tools/js/package-lock.json");
const SCRIPT: &str = include_str!("tools/js/componentize.mjs");
/// Of the plugin, not of the tool.
const PRELUDE: &str = include_str!("tools/js/prelude.js");
