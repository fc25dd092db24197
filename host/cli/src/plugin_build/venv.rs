//! Tools from PyPI, each in a virtual environment of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{HostEnv, child};

/// A tool that PyPI has.
pub(super) struct PythonTool<'a> {
    /// Of the tool, for people.
    pub(super) name: &'a str,
    /// Its packages, exactly.
    pub(super) requirements: &'a str,
    /// What is downloaded, for people.
    pub(super) size: &'a str,
    /// What plugins are built with it.
    pub(super) language: &'a str,
}

impl PythonTool<'_> {
    /// The folder with the environment's programs, once everything is installed in `folder`.
    pub(super) fn install(
        &self,
        folder: &Path,
        host_env: &HostEnv,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<PathBuf> {
        let bin = folder.join("bin");
        let mark = folder.join("installed");
        if fs::read_to_string(&mark).is_ok_and(|installed| installed == self.requirements) {
            return Ok(bin);
        }
        let python = host_env.find("python3").with_context(|| {
            format!(
                "plugins in {} are built by {} from PyPI, and there is no `python3`\n{HINT}",
                self.language, self.name
            )
        })?;
        say(&format!("installing {} from PyPI ({})", self.name, self.size));
        if folder.exists() {
            // Of another version, or left by an installation that broke off.
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let ended = child::run(host_env.command(&python, folder).args(["-m", "venv", "."]))?;
        if !ended.status.success() {
            // Some systems ship the module without what it needs, and it says so on stdout.
            bail!("python3 makes no virtual environment\n{}{}\n{HINT}", ended.stdout, ended.stderr.trim());
        }
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, self.requirements)
            .with_context(|| format!("cannot write {}", requirements.display()))?;
        let mut command = host_env.command(&bin.join("python3"), folder);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
        let ended = child::run(command.args(["--requirement", "requirements.txt"]))?;
        if !ended.status.success() {
            bail!(
                "pip could not install {}\n{}\nhint: the command was: bin/python3 -m pip install --requirement \
                 requirements.txt, in {}",
                self.name,
                ended.stderr.trim(),
                folder.display()
            );
        }
        fs::write(&mark, self.requirements).with_context(|| format!("cannot write {}", mark.display()))?;
        Ok(bin)
    }
}

const HINT: &str =
    "hint: install Python 3.11 or later with its module venv, such as by: sudo apt-get install python3-venv";
