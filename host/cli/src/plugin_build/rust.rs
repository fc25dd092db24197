//! Plugins in Rust: the packages of a cargo workspace.
//!
//! A toolchain is found or made ready ([`toolchain`], [`super::debian`]), cargo tells what the workspace holds
//! ([`super::workspace`]) and compiles it ([`super::compile`]). A package says in its `Cargo.toml` what cargo cannot
//! know:
//!
//! ```toml
//! [package.metadata.latch]
//! fixture = true              # goes to OUT/fixtures, and only if fixtures are asked for
//! next-features = ["v2"]      # build it again with these features, to OUT/next
//! next-version = "2.0.0"      # the version of that one
//! ```

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::compile::Compile;
use super::target_folder::TargetFolder;
use super::toolchain::{self, Toolchain};
use super::workspace::{Package, Workspace};
use super::{BuildRequest, BuiltPlugin, HostEnv, Language, PluginKind, component};

/// Whole paths of what a build reads and writes.
pub(super) struct Places<'a> {
    pub(super) folder: &'a Path,
    pub(super) tools: &'a Path,
    pub(super) guests: &'a Path,
    pub(super) out: &'a Path,
}

/// Builds the packages called `names`, all plugins if there are none.
pub(super) fn build(
    places: &Places,
    names: &[String],
    request: &BuildRequest,
    host_env: &HostEnv,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<BuiltPlugin>> {
    let toolchain = toolchain::choose(request.toolchain, places.folder, places.tools, host_env, say)?;
    let workspace = Workspace::read(places.folder, &toolchain)?;
    let packages = workspace.select(names, request.fixtures)?;
    let guests = places.guests.join(toolchain.name);
    let mut built = build_current(&workspace, &packages, &toolchain, &guests, places.out, say)?;
    built.extend(build_next(&workspace, &packages, &toolchain, &guests, places.out, say)?);
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
    let (name, version, language) = (package.name.clone(), version.to_owned(), Language::Rust);
    Ok(BuiltPlugin { name, version, language, path, kind, size, changed })
}
