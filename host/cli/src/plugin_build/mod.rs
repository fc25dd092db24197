//! `latch plugin build`: one command that turns the crates of a plugin workspace into components.
//!
//! Start at [`build`]. A toolchain is found or made ready ([`toolchain`], [`debian`]), cargo tells what the workspace
//! holds ([`workspace`]) and compiles it ([`compile`]), and each component gets its version and its place
//! ([`component`]). Nothing here reads this process's environment: the caller hands over a [`HostEnv`].
//!
//! A package says in its `Cargo.toml` what cargo cannot know:
//!
//! ```toml
//! [package.metadata.latch]
//! fixture = true              # goes to OUT/fixtures, and only if fixtures are asked for
//! next-features = ["v2"]      # build it again with these features, to OUT/next
//! next-version = "2.0.0"      # the version of that one
//! ```

mod child;
mod compile;
mod component;
mod debian;
mod host_env;
mod target_folder;
mod toolchain;
mod workspace;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

pub(crate) use host_env::HostEnv;

use compile::Compile;
use target_folder::TargetFolder;
use toolchain::Toolchain;
use workspace::{Package, Workspace};

/// What `latch plugin build` was asked for.
#[derive(Debug, Clone)]
pub(crate) struct BuildRequest {
    /// A workspace of plugins, or one plugin's crate.
    pub(crate) workspace: PathBuf,
    /// Where components go; usually `target/plugins`.
    pub(crate) out: PathBuf,
    pub(crate) toolchain: ToolchainChoice,
    /// The packages to build; all plugins if empty.
    pub(crate) packages: Vec<String>,
    /// Where tools that had to be installed go, usually `target/tools`. What cargo keeps goes beside it, to `guests`.
    pub(crate) tools_dir: PathBuf,
    /// Whether "all plugins" includes the fixtures.
    pub(crate) fixtures: bool,
}

/// Which Rust compiles the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolchainChoice {
    /// Whichever works: what is there before what must be fetched.
    Auto,
    /// The Rust on `PATH`; rustup adds the target if it is missing.
    Rustup,
    /// Debian's packages, which compile the standard library from source.
    Debian,
}

/// One component that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuiltPlugin {
    /// The name of the package, of the file, and so of the plugin.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: PluginKind,
    /// In bytes.
    pub(crate) size: u64,
    /// Whether the file's content is new; an unchanged file is not touched, so no running host reloads it.
    pub(crate) changed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PluginKind {
    Current,
    /// The package's later version, for swaps.
    Next,
    /// Misbehaves on purpose, for tests.
    Fixture,
}

/// Builds what `request` asks for. `say` gets one line for each step that may take long.
pub(crate) fn build(
    request: &BuildRequest,
    host_env: HostEnv,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<BuiltPlugin>> {
    let folder = plugin_folder(&request.workspace)?;
    let out = absolute(&request.out)?;
    let tools = absolute(&request.tools_dir)?;
    let guests = tools.parent().with_context(|| format!("{} has no parent folder", tools.display()))?.join("guests");
    let _lock = lock(&guests, say)?;

    let toolchain = toolchain::choose(request.toolchain, &folder, &tools, &host_env, say)?;
    let workspace = Workspace::read(&folder, &toolchain)?;
    let packages = workspace.select(&request.packages, request.fixtures)?;
    let guests = guests.join(toolchain.name);
    let mut built = build_current(&workspace, &packages, &toolchain, &guests, &out, say)?;
    built.extend(build_next(&workspace, &packages, &toolchain, &guests, &out, say)?);
    Ok(built)
}

fn build_current(
    workspace: &Workspace,
    packages: &[&Package],
    toolchain: &Toolchain,
    guests: &Path,
    out: &Path,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<BuiltPlugin>> {
    let target_folder = TargetFolder { root: guests, workspace: &workspace.root, variant: None };
    let artifacts = Compile { workspace, toolchain, packages, features: &[], target_folder }.run(say)?;
    let mut built = Vec::new();
    for package in packages {
        let (kind, folder) = match package.latch.fixture {
            true => (PluginKind::Fixture, out.join("fixtures")),
            false => (PluginKind::Current, out.to_owned()),
        };
        built.push(place(package, kind, &package.version, artifacts.of(package)?, &folder)?);
    }
    Ok(built)
}

fn build_next(
    workspace: &Workspace,
    packages: &[&Package],
    toolchain: &Toolchain,
    guests: &Path,
    out: &Path,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<BuiltPlugin>> {
    let mut built = Vec::new();
    for package in packages {
        if let Some(next) = package.next()? {
            // Cargo names a package's component alike for every set of features: in one folder the two versions would
            // overwrite each other, each time.
            let target_folder = TargetFolder { root: guests, workspace: &workspace.root, variant: Some("next") };
            let compile =
                Compile { workspace, toolchain, packages: &[package], features: next.features, target_folder };
            let artifacts = compile.run(say)?;
            let artifact = artifacts.of(package)?;
            built.push(place(package, PluginKind::Next, next.version, artifact, &out.join("next"))?);
        }
    }
    Ok(built)
}

/// Marks an artifact of cargo with its version and puts it where hosts look for it.
fn place(
    package: &Package,
    kind: PluginKind,
    version: &str,
    artifact: &Path,
    folder: &Path,
) -> anyhow::Result<BuiltPlugin> {
    let compiled = fs::read(artifact).with_context(|| format!("cannot read {}", artifact.display()))?;
    let marked = component::with_version(compiled, version).with_context(|| format!("package {}", package.name))?;
    let path = folder.join(format!("{}.wasm", package.name));
    let changed = component::replace(&path, &marked).with_context(|| format!("cannot write {}", path.display()))?;
    let size = marked.len() as u64;
    Ok(BuiltPlugin { name: package.name.clone(), version: version.to_owned(), path, kind, size, changed })
}

/// The folder to build, checked before anything is installed on its behalf.
fn plugin_folder(given: &Path) -> anyhow::Result<PathBuf> {
    let folder = fs::canonicalize(given).with_context(|| format!("no plugins at {}", given.display()))?;
    if !folder.join("Cargo.toml").is_file() {
        bail!("no plugins at {}\nhint: name a folder that has a Cargo.toml", given.display());
    }
    Ok(folder)
}

/// Children run in another folder, so they are told whole paths.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("not a usable path: {}", path.display()))
}

/// One build at a time: two would install the same tools and fill the same folders. Held until dropped.
fn lock(guests: &Path, say: &mut dyn FnMut(&str)) -> anyhow::Result<File> {
    let path = guests.join("lock");
    let open = || -> std::io::Result<File> {
        fs::create_dir_all(guests)?;
        File::create(&path)
    };
    let file = open().with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => say("waiting for another plugin build to end"),
        Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", path.display())),
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
