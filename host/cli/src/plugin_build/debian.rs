//! The toolchain of Debian's packages, for machines that cannot reach rustup's server.
//!
//! Debian has no standard library for the target, but its source: cargo's `-Zbuild-std` compiles it, against Debian's
//! WASI C library. One tool is in no package, the linker that makes components; it comes with rustup's toolchains, and
//! from crates.io.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::toolchain::Toolchain;
use super::{HostEnv, child};

/// What Debian offers on this machine.
#[derive(Debug)]
pub(super) struct Debian {
    pub(super) has_apt: bool,
    /// The packages that are not installed.
    pub(super) missing: Vec<&'static str>,
    /// Whether this process may install them.
    pub(super) can_install: bool,
}

impl Debian {
    pub(super) fn look(host_env: &HostEnv) -> anyhow::Result<Debian> {
        let has_apt = host_env.find("apt-get").is_some();
        let installed = match host_env.find("dpkg-query") {
            Some(dpkg_query) => installed(&dpkg_query, host_env)?,
            None => String::new(),
        };
        let missing = missing(&installed);
        Ok(Debian { has_apt, missing, can_install: has_apt && is_superuser() })
    }

    /// What installs the missing packages, without `sudo`.
    pub(super) fn install_command(&self) -> String {
        format!("apt-get install --no-install-recommends {}", self.missing.join(" "))
    }

    pub(super) fn install(&self, host_env: &HostEnv, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        say(&format!("installing Debian's packages: {}", self.missing.join(" ")));
        if self.apt_get(&[&INSTALL, self.missing.as_slice()].concat(), host_env)?.status.success() {
            return Ok(());
        }
        // The usual reason is a package list that is missing or old.
        say("updating Debian's package lists");
        let updated = self.apt_get(&["update"], host_env)?;
        let installed = self.apt_get(&[&INSTALL, self.missing.as_slice()].concat(), host_env)?;
        if !installed.status.success() {
            let said = format!("{}{}", updated.stderr, installed.stderr);
            bail!(
                "cannot install Debian's packages\n{}\nhint: the command was: {}",
                said.trim(),
                self.install_command()
            );
        }
        Ok(())
    }

    fn apt_get(&self, arguments: &[&str], host_env: &HostEnv) -> anyhow::Result<child::Ended> {
        let apt_get = host_env.find("apt-get").context("apt-get is not there any more")?;
        let mut command = host_env.command(&apt_get, Path::new("/"));
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        // What packages run when they are installed is in the system's own folders.
        command.env("PATH", host_env.path_between(Path::new("/usr/sbin"), Path::new("/usr/bin:/sbin:/bin")));
        child::run(command.args(arguments))
    }
}

/// The toolchain, once its packages are installed.
pub(super) fn toolchain(tools: &Path, host_env: &HostEnv, say: &mut dyn FnMut(&str)) -> anyhow::Result<Toolchain> {
    say("toolchain: Debian's");
    let bin = tools.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    // The package carries its version in the name, the component linker looks for the plain one.
    link(Path::new(WASM_LD), &bin.join("wasm-ld"))?;
    provide_component_linker(tools, &bin.join(COMPONENT_LINKER), host_env, say)?;
    Ok(Toolchain {
        name: "debian",
        cargo: CARGO.into(),
        variables: vec![
            ("PATH".into(), host_env.path_between(&bin, Path::new("/usr/bin:/bin"))),
            ("RUSTC".into(), RUSTC.into()),
            // Building the library from source is an unstable option, and this is a stable release.
            ("RUSTC_BOOTSTRAP".into(), "1".into()),
            ("CARGO_ENCODED_RUSTFLAGS".into(), RUSTFLAGS.join("\x1f").into()),
        ],
        arguments: &["-Zbuild-std=std,panic_abort"],
        host_env: host_env.clone(),
    })
}

/// Takes the component linker of one of rustup's toolchains if there is one, since compiling it takes minutes.
fn provide_component_linker(
    tools: &Path,
    place: &Path,
    host_env: &HostEnv,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    if place.exists() {
        return Ok(());
    }
    if let Some(there) = component_linker_of_rust_on_path(host_env)? {
        return link(&there, place);
    }
    say(&format!("compiling {COMPONENT_LINKER} from crates.io, which takes minutes"));
    // A link to a toolchain that has gone since.
    remove_if_there(place)?;
    let mut command = host_env.command(Path::new(CARGO), tools);
    command.env("RUSTC", RUSTC).env("CARGO_TARGET_DIR", tools.join("build"));
    // Unoptimised: it links a few small files, and compiles in half the time.
    command.args(["install", COMPONENT_LINKER, "--locked", "--debug", "--quiet", "--root"]).arg(tools);
    let ended = child::run(&mut command)?;
    if !ended.status.success() {
        bail!("cannot install {COMPONENT_LINKER} from crates.io\n{}", ended.stderr.trim());
    }
    Ok(())
}

fn component_linker_of_rust_on_path(host_env: &HostEnv) -> anyhow::Result<Option<PathBuf>> {
    let Some(rustc) = host_env.find("rustc") else { return Ok(None) };
    let mut command = host_env.command(&rustc, Path::new("/"));
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["--print", "target-libdir"]);
    let libdir = child::run(&mut command)?.success();
    // `…/rustlib/HOST/lib`; the linkers are in `…/rustlib/HOST/bin`.
    let linker = libdir.and_then(|libdir| Some(Path::new(libdir.trim()).parent()?.join("bin").join(COMPONENT_LINKER)));
    Ok(linker.filter(|linker| linker.is_file()))
}

/// Makes `place` a link to `to`, whatever it was before.
fn link(to: &Path, place: &Path) -> anyhow::Result<()> {
    if fs::read_link(place).is_ok_and(|there| there == to) {
        return Ok(());
    }
    remove_if_there(place)?;
    symlink(to, place).with_context(|| format!("cannot make a link at {}", place.display()))
}

fn remove_if_there(place: &Path) -> anyhow::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", place.display()))
        }
        _ => Ok(()),
    }
}

fn installed(dpkg_query: &Path, host_env: &HostEnv) -> anyhow::Result<String> {
    let mut command = host_env.command(dpkg_query, Path::new("/"));
    command.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]).args(PACKAGES);
    // Its status only says that some package is unknown.
    Ok(child::run(&mut command)?.stdout)
}

/// Those of [`PACKAGES`] that dpkg-query's answer does not call installed.
fn missing(installed: &str) -> Vec<&'static str> {
    let there = |package: &&str| installed.lines().any(|line| line.strip_prefix(*package) == Some(" installed"));
    PACKAGES.into_iter().filter(|package| !there(package)).collect()
}

/// Whoever runs this process owns its folder in `/proc`.
fn is_superuser() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Compiler, cargo, the library's source; the linker; the C library for WASI. `rustc-web` is the Rust that Debian keeps
/// recent enough for browsers.
const PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "rust-web-src", "lld-22", "wasi-libc"];

/// Nobody is asked, nothing is removed to make room (a `rustc` of the user's own), and another installation may end
/// first.
const INSTALL: [&str; 6] =
    ["install", "--yes", "--no-install-recommends", "--no-remove", "-oDPkg::Lock::Timeout=120", "--"];

const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const WASM_LD: &str = "/usr/bin/wasm-ld-22";
const COMPONENT_LINKER: &str = "wasm-component-ld";

/// Debian's C library instead of the one that rustup's target would carry.
const RUSTFLAGS: [&str; 4] = ["-L", "/usr/lib/wasm32-wasi", "-C", "link-self-contained=no"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_counts_when_dpkg_calls_it_installed() {
        assert_eq!(missing(""), PACKAGES);
        let answer = "cargo-web installed\nlld-22 config-files\nrust-web-src installed\nrustc-web installed\n";
        assert_eq!(missing(answer), ["lld-22", "wasi-libc"]);
    }

    #[test]
    fn the_advice_names_only_what_is_missing() {
        let debian = Debian { has_apt: true, missing: vec!["lld-22", "wasi-libc"], can_install: false };
        assert_eq!(debian.install_command(), "apt-get install --no-install-recommends lld-22 wasi-libc");
    }
}
