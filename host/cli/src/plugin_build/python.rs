//! Python: the interpreter CPython with the plugin's modules inside, made by componentize-py from PyPI.

use anyhow::{Context, bail};

use super::child;
use super::foreign::Build;
use super::venv::PythonTool;

/// What decides about the component beside the plugin's own files.
pub(super) const TOOL: &[&str] = &[REQUIREMENTS];

pub(super) fn componentize(build: &Build, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let tool = PythonTool { name: "componentize-py", requirements: REQUIREMENTS, size: "20 MB", language: "Python" };
    build.project.sources()?;
    let bin = tool.install(&build.tools.join("python"), build.host_env, say)?;
    let [module] = build.project.manifest.source.all() else { bail!("a plugin in Python has one source") };
    // A copy, because the interpreter leaves a folder of its own beside each module that it reads.
    let module = build.copy_sources()?.join(module);
    let name = module.file_stem().and_then(|stem| stem.to_str()).context("the source names no Python module")?;
    let folder = module.parent().context("the source has no folder")?;
    say(&format!("building {} with componentize-py", build.project.label()));
    let mut command = build.host_env.command(&bin.join("componentize-py"), &build.project.folder);
    command.arg("--wit-path").arg(build.wit()).args(["--world", &build.project.manifest.world]);
    command.args(["componentize", name, "--python-path"]).arg(folder).arg("--output").arg(build.component());
    let ended = child::run(&mut command)?;
    if !ended.status.success() {
        bail!("componentize-py says:\n{}{}", ended.stdout, ended.stderr.trim());
    }
    Ok(())
}

const REQUIREMENTS: &str = include_str!("tools/python/requirements.txt");
