//! Which Rust compiles the guests.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use super::debian::{self, Debian};
use super::{HostEnv, ToolchainChoice, child};

/// What guests are compiled for: WASI 0.2 components.
pub(super) const TARGET: &str = "wasm32-wasip2";

/// A Rust that can compile guests.
#[derive(Debug)]
pub(super) struct Toolchain {
    /// Also the name of its target folder: two toolchains in one would compile everything anew in turns.
    pub(super) name: &'static str,
    pub(super) cargo: PathBuf,
    /// What its cargo needs beyond the host's environment.
    pub(super) variables: Vec<(OsString, OsString)>,
    /// What `cargo build` needs beyond the target.
    pub(super) arguments: &'static [&'static str],
    pub(super) host_env: HostEnv,
}

impl Toolchain {
    /// `cargo`, to be run in `folder`.
    pub(super) fn cargo(&self, folder: &Path) -> Command {
        let mut command = self.host_env.command(&self.cargo, folder);
        command.env("CARGO_TERM_COLOR", "never");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// Finds a toolchain for the plugins in `folder`, or makes one ready.
pub(super) fn choose(
    choice: ToolchainChoice,
    folder: &Path,
    tools: &Path,
    host_env: &HostEnv,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Toolchain> {
    let debian = Debian::look(host_env)?;
    let mut on_path = OnPath::look(folder, host_env)?;
    let mut tried_rustup = None;
    loop {
        let found = Found {
            target: on_path.as_ref().is_some_and(|rust| rust.has_target),
            rustup: on_path.as_ref().is_some_and(|rust| rust.rustup.is_some()) && tried_rustup.is_none(),
            debian_packages: debian.missing.is_empty(),
            debian_installs: debian.can_install,
        };
        match (next_step(choice, found), &mut on_path) {
            (Step::UseRustup, Some(rust)) => return Ok(rust.toolchain(host_env, say)),
            (Step::AddTarget, Some(rust)) => tried_rustup = Some(rust.add_target(folder, host_env, say)?),
            (Step::InstallDebian, _) => {
                debian.install(host_env, say)?;
                return debian::toolchain(tools, host_env, say);
            }
            (Step::UseDebian, _) => return debian::toolchain(tools, host_env, say),
            (Step::GiveUp | Step::UseRustup | Step::AddTarget, _) => {
                bail!(advice(choice, &debian, tried_rustup.as_ref()))
            }
        }
    }
}

/// What there is to choose from.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    /// The Rust on `PATH` has the target.
    target: bool,
    /// There is a rustup that has not been asked for the target yet.
    rustup: bool,
    debian_packages: bool,
    /// Debian's packages are not there, but could be installed from here.
    debian_installs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    UseRustup,
    UseDebian,
    AddTarget,
    InstallDebian,
    GiveUp,
}

/// What is there comes before what must be fetched, so that a second build asks no network.
fn next_step(choice: ToolchainChoice, found: Found) -> Step {
    let rustup = choice != ToolchainChoice::Debian;
    let debian = choice != ToolchainChoice::Rustup;
    if rustup && found.target {
        Step::UseRustup
    } else if debian && found.debian_packages {
        Step::UseDebian
    } else if rustup && found.rustup {
        Step::AddTarget
    } else if debian && found.debian_installs {
        Step::InstallDebian
    } else {
        Step::GiveUp
    }
}

fn advice(choice: ToolchainChoice, debian: &Debian, tried_rustup: Option<&Attempt>) -> String {
    let mut text = format!("no Rust here can compile for {TARGET}");
    if let Some(Attempt::Failed(reason)) = tried_rustup {
        text.push_str(&format!("\nrustup could not add the target: {}", reason.trim()));
    }
    if choice != ToolchainChoice::Debian {
        text.push_str(&format!("\nhint: with rustup: rustup target add {TARGET}"));
    }
    if choice != ToolchainChoice::Rustup && debian.has_apt {
        text.push_str(&format!("\nhint: with Debian's packages: sudo {}", debian.install_command()));
    }
    text
}

/// The Rust that the user's `PATH` leads to.
struct OnPath {
    rustc: PathBuf,
    cargo: PathBuf,
    rustup: Option<Rustup>,
    has_target: bool,
}

/// That Rust is rustup's to choose. The choice is asked for once and then named explicitly to every child, so that all
/// use the same, whatever folder they run in.
struct Rustup {
    program: PathBuf,
    toolchain: String,
    /// Why this one, in rustup's words, such as `default` or `overridden by '…/rust-toolchain.toml'`.
    reason: String,
}

/// What came of `rustup target add`.
enum Attempt {
    Added,
    Failed(String),
}

impl OnPath {
    fn look(folder: &Path, host_env: &HostEnv) -> anyhow::Result<Option<OnPath>> {
        let (Some(rustc), Some(cargo)) = (host_env.find("rustc"), host_env.find("cargo")) else { return Ok(None) };
        let rustup = match host_env.find("rustup") {
            Some(program) => Rustup::look(program, folder, host_env)?,
            None => None,
        };
        let mut on_path = OnPath { rustc, cargo, rustup, has_target: false };
        on_path.look_for_target(folder, host_env)?;
        Ok(Some(on_path))
    }

    /// The target is there when its standard library is; the folder alone may be left over.
    fn look_for_target(&mut self, folder: &Path, host_env: &HostEnv) -> anyhow::Result<()> {
        let mut command = host_env.command(&self.rustc, folder);
        command.envs(self.variables()).args(["--print", "target-libdir", "--target", TARGET]);
        let answer = child::run_within(PROBE_LIMIT, &mut command)?.and_then(child::Ended::success);
        let libraries = answer.and_then(|libdir| fs::read_dir(libdir.trim()).ok());
        self.has_target = libraries.is_some_and(|libraries| {
            libraries.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
        });
        Ok(())
    }

    fn add_target(&mut self, folder: &Path, host_env: &HostEnv, say: &mut dyn FnMut(&str)) -> anyhow::Result<Attempt> {
        let rustup = self.rustup.as_ref().context("the target is added only where rustup is")?;
        say(&format!("adding {TARGET} to {} with rustup", rustup.toolchain));
        let mut command = host_env.command(&rustup.program, folder);
        command.args(["target", "add", TARGET, "--toolchain", &rustup.toolchain]);
        let attempt = match child::run_within(DOWNLOAD_LIMIT, &mut command)? {
            Some(ended) if ended.status.success() => Attempt::Added,
            Some(ended) => Attempt::Failed(ended.stderr),
            None => Attempt::Failed(format!("it took longer than {} s", DOWNLOAD_LIMIT.as_secs())),
        };
        if let Attempt::Failed(reason) = &attempt {
            let last_line = reason.trim().lines().last().unwrap_or("it said nothing");
            say(&format!("rustup could not add the target: {last_line}"));
        }
        self.look_for_target(folder, host_env)?;
        Ok(attempt)
    }

    fn variables(&self) -> Vec<(OsString, OsString)> {
        let Some(rustup) = &self.rustup else { return Vec::new() };
        vec![
            ("RUSTUP_TOOLCHAIN".into(), (&rustup.toolchain).into()),
            // A toolchain that is not there is an error to show, not a download of unknown length.
            ("RUSTUP_AUTO_INSTALL".into(), "0".into()),
        ]
    }

    fn toolchain(&self, host_env: &HostEnv, say: &mut dyn FnMut(&str)) -> Toolchain {
        match &self.rustup {
            Some(rustup) => say(&format!("toolchain: rustup's {} ({})", rustup.toolchain, rustup.reason)),
            None => say(&format!("toolchain: {}", self.rustc.display())),
        }
        let mut variables = self.variables();
        variables.push(("RUSTC".into(), (&self.rustc).into()));
        Toolchain { name: "rustup", cargo: self.cargo.clone(), variables, arguments: &[], host_env: host_env.clone() }
    }
}

impl Rustup {
    /// `None` if rustup has no toolchain to offer for `folder`.
    fn look(program: PathBuf, folder: &Path, host_env: &HostEnv) -> anyhow::Result<Option<Rustup>> {
        let mut command = host_env.command(&program, folder);
        command.env("RUSTUP_AUTO_INSTALL", "0").args(["show", "active-toolchain"]);
        let answer = child::run_within(PROBE_LIMIT, &mut command)?.and_then(child::Ended::success);
        Ok(answer.as_deref().and_then(parse_active_toolchain).map(|(toolchain, reason)| Rustup {
            program,
            toolchain,
            reason,
        }))
    }
}

/// Reads `NAME (REASON)`, or a line `NAME` and a line of reason, as rustup prints it by version.
fn parse_active_toolchain(answer: &str) -> Option<(String, String)> {
    let (name, reason) = answer.trim().split_once(char::is_whitespace).unwrap_or((answer.trim(), "active"));
    if name.is_empty() {
        return None;
    }
    let reason = reason.lines().next().unwrap_or_default().trim();
    let reason = reason.strip_prefix('(').and_then(|reason| reason.strip_suffix(')')).unwrap_or(reason);
    let reason = reason.strip_prefix("active because: ").unwrap_or(reason);
    Some((name.to_owned(), reason.to_owned()))
}

/// A probe reads a few files; only a rustup that secretly downloads takes longer.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// The target is 20 MB or so. Where it does not come in this time, compiling the library from source is quicker.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use ToolchainChoice::{Auto, Debian as ByDebian, Rustup as ByRustup};

    fn check(found: Found, expect: [Step; 3]) {
        let steps = [Auto, ByRustup, ByDebian].map(|choice| next_step(choice, found));
        assert_eq!(steps, expect, "{found:?}");
    }

    #[test]
    fn what_is_there_comes_before_what_must_be_fetched() {
        use Step::{AddTarget, GiveUp, InstallDebian, UseDebian, UseRustup};
        let nothing = Found::default();
        check(nothing, [GiveUp, GiveUp, GiveUp]);
        check(Found { target: true, ..nothing }, [UseRustup, UseRustup, GiveUp]);
        check(Found { rustup: true, ..nothing }, [AddTarget, AddTarget, GiveUp]);
        check(Found { debian_packages: true, ..nothing }, [UseDebian, GiveUp, UseDebian]);
        check(Found { debian_installs: true, ..nothing }, [InstallDebian, GiveUp, InstallDebian]);
        check(Found { rustup: true, debian_installs: true, ..nothing }, [AddTarget, AddTarget, InstallDebian]);
        check(Found { rustup: true, debian_packages: true, ..nothing }, [UseDebian, AddTarget, UseDebian]);
        check(Found { target: true, debian_packages: true, ..nothing }, [UseRustup, UseRustup, UseDebian]);
        check(Found { target: true, rustup: true, ..nothing }, [UseRustup, UseRustup, GiveUp]);
    }

    #[test]
    fn the_active_toolchain_as_rustup_prints_it() {
        let parse = |answer| parse_active_toolchain(answer);
        let some = |name: &str, reason: &str| Some((name.to_owned(), reason.to_owned()));
        assert_eq!(
            parse("stable-x86_64-unknown-linux-gnu (default)\n"),
            some("stable-x86_64-unknown-linux-gnu", "default")
        );
        assert_eq!(
            parse("1.95.0 (overridden by '/a b/rust-toolchain.toml')\n"),
            some("1.95.0", "overridden by '/a b/rust-toolchain.toml'")
        );
        assert_eq!(
            parse("stable\nactive because: it's the default toolchain\n"),
            some("stable", "it's the default toolchain")
        );
        assert_eq!(parse("stable\n"), some("stable", "active"));
        assert_eq!(parse(""), None);
    }
}
