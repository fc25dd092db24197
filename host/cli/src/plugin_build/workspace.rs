//! What there is to build, as `cargo metadata` tells it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::child;
use super::toolchain::Toolchain;

/// The packages of one cargo workspace.
#[derive(Debug, Deserialize)]
pub(super) struct Workspace {
    #[serde(rename = "workspace_root")]
    pub(super) root: PathBuf,
    packages: Vec<Package>,
    /// Whether the workspace says how release builds are made.
    #[serde(skip)]
    pub(super) has_release_profile: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) id: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
    #[serde(default, rename = "metadata", deserialize_with = "latch_metadata")]
    pub(super) latch: LatchMetadata,
}

#[derive(Debug, Deserialize)]
struct Target {
    crate_types: Vec<String>,
}

/// `[package.metadata.latch]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct LatchMetadata {
    #[serde(default)]
    pub(super) fixture: bool,
    #[serde(default)]
    next_features: Vec<String>,
    next_version: Option<String>,
}

/// The later version of a package.
pub(super) struct Next<'a> {
    pub(super) features: &'a [String],
    pub(super) version: &'a str,
}

impl Workspace {
    /// Reads the workspace that `folder` belongs to. If `folder` is one package, the others do not count.
    pub(super) fn read(folder: &Path, toolchain: &Toolchain) -> anyhow::Result<Workspace> {
        let mut command = toolchain.cargo(folder);
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        let ended = child::run(&mut command)?;
        if !ended.status.success() {
            bail!("cargo could not read {}\n{}", folder.join("Cargo.toml").display(), ended.stderr.trim());
        }
        let mut workspace = Workspace::parse(&ended.stdout, folder).context("cargo's list of packages")?;
        let manifest = workspace.root.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        workspace.has_release_profile = has_release_profile(&text);
        Ok(workspace)
    }

    fn parse(metadata: &str, folder: &Path) -> anyhow::Result<Workspace> {
        let mut workspace: Workspace = serde_json::from_str(metadata)?;
        let manifest = folder.join("Cargo.toml");
        if workspace.packages.iter().any(|package| package.manifest_path == manifest) {
            workspace.packages.retain(|package| package.manifest_path == manifest);
        }
        Ok(workspace)
    }

    /// The packages called `names`; if there are none, all that are plugins.
    pub(super) fn select(&self, names: &[String], fixtures: bool) -> anyhow::Result<Vec<&Package>> {
        if !names.is_empty() {
            return names.iter().map(|name| self.plugin(name)).collect();
        }
        let wanted = |package: &&Package| package.is_plugin() && (fixtures || !package.latch.fixture);
        let packages: Vec<_> = self.packages.iter().filter(wanted).collect();
        if packages.is_empty() {
            bail!("no package in {} is a plugin\n{CDYLIB_HINT}", self.root.display());
        }
        Ok(packages)
    }

    fn plugin(&self, name: &str) -> anyhow::Result<&Package> {
        match self.packages.iter().find(|package| package.name == name) {
            Some(package) if package.is_plugin() => Ok(package),
            Some(_) => bail!("package {name} is no plugin\n{CDYLIB_HINT}"),
            None => {
                let known: Vec<_> = self.packages.iter().map(|package| package.name.as_str()).collect();
                bail!("no package is called {name}\nhint: there are {}", known.join(", "))
            }
        }
    }
}

impl Package {
    fn is_plugin(&self) -> bool {
        self.targets.iter().any(|target| target.crate_types.iter().any(|crate_type| crate_type == "cdylib"))
    }

    pub(super) fn next(&self) -> anyhow::Result<Option<Next<'_>>> {
        match &self.latch.next_version {
            Some(version) => Ok(Some(Next { features: &self.latch.next_features, version })),
            None if self.latch.next_features.is_empty() => Ok(None),
            None => bail!("package {} has next-features but no next-version", self.name),
        }
    }
}

/// Cargo tells about everything in a manifest except its profiles.
fn has_release_profile(manifest: &str) -> bool {
    manifest.lines().any(|line| line.trim_start().starts_with("[profile.release"))
}

/// Picks our table out of everybody's metadata; a package without any has `null` there.
fn latch_metadata<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<LatchMetadata, D::Error> {
    #[derive(Deserialize)]
    struct Everybody {
        #[serde(default)]
        latch: LatchMetadata,
    }
    let everybody: Option<Everybody> = Option::deserialize(deserializer)?;
    Ok(everybody.map(|everybody| everybody.latch).unwrap_or_default())
}

const CDYLIB_HINT: &str = "hint: a plugin's Cargo.toml has a [lib] with crate-type = [\"cdylib\"]";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn package(name: &str, crate_type: &str, metadata: Value) -> Value {
        json!({
            "name": name, "version": "1.0.0", "id": name, "manifest_path": format!("/plugins/{name}/Cargo.toml"),
            "targets": [{ "crate_types": [crate_type] }], "metadata": metadata,
        })
    }

    fn workspace(folder: &str) -> Workspace {
        let packages = [
            package("door", "cdylib", json!({ "latch": { "next-features": ["v2"], "next-version": "2.0.0" } })),
            package("helper", "lib", Value::Null),
            package("trap", "cdylib", json!({ "latch": { "fixture": true }, "docs": {} })),
        ];
        let metadata = json!({ "workspace_root": "/plugins", "packages": packages });
        Workspace::parse(&metadata.to_string(), Path::new(folder)).unwrap()
    }

    fn check(folder: &str, names: &[&str], fixtures: bool, expect: Result<&[&str], &str>) {
        let workspace = workspace(folder);
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let selected = workspace.select(&names, fixtures);
        let selected =
            selected.map(|packages| packages.iter().map(|package| package.name.as_str()).collect::<Vec<_>>());
        let first_line = |error: anyhow::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        assert_eq!(selected.map_err(first_line), expect.map(<[_]>::to_vec).map_err(str::to_owned));
    }

    #[test]
    fn all_plugins_or_the_named_ones() {
        check("/plugins", &[], false, Ok(&["door"]));
        check("/plugins", &[], true, Ok(&["door", "trap"]));
        check("/plugins", &["trap"], false, Ok(&["trap"]));
        check("/plugins", &["helper"], false, Err("package helper is no plugin"));
        check("/plugins", &["gate"], false, Err("no package is called gate"));
    }

    #[test]
    fn a_folder_that_is_one_package_means_that_package() {
        check("/plugins/door", &[], true, Ok(&["door"]));
        check("/plugins/helper", &[], true, Err("no package in /plugins is a plugin"));
    }

    #[test]
    fn a_later_version_needs_a_number() {
        let workspace = workspace("/plugins");
        let next = workspace.packages[0].next().unwrap().unwrap();
        assert_eq!((next.features, next.version), (&["v2".to_owned()][..], "2.0.0"));
        assert!(workspace.packages[1].next().unwrap().is_none());

        let broken = package("door", "cdylib", json!({ "latch": { "next-features": ["v2"] } }));
        let broken: Package = serde_json::from_value(broken).unwrap();
        assert!(broken.next().is_err());
    }

    #[test]
    fn a_profile_is_seen() {
        assert!(has_release_profile("[workspace]\n[profile.release]\nlto = true\n"));
        assert!(!has_release_profile("[package]\n# [profile.release]\n[profile.dev]\n"));
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        let misspelt = package("door", "cdylib", json!({ "latch": { "next-feature": ["v2"] } }));
        assert!(serde_json::from_value::<Package>(misspelt).is_err());
    }
}
