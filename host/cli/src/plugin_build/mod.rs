//! `latch plugin build`: one command that turns plugins into components, whatever they are written in.
//!
//! Start at [`build`]. Plugins in Rust are packages of a cargo workspace ([`rust`]); those in other languages are
//! folders with a manifest ([`project`]), built one by one by their language's tool ([`foreign`]), which is installed
//! when it is first needed. In the end each component gets its version and its place ([`component`]). Nothing here reads this
//! process's environment: the caller hands over a [`HostEnv`].

mod c;
mod child;
mod compile;
mod component;
mod debian;
mod foreign;
mod host_env;
mod javascript;
mod project;
mod python;
mod rust;
mod target_folder;
mod toolchain;
mod venv;
mod workspace;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

pub(crate) use host_env::HostEnv;

use project::{MANIFEST, Project};
use serde::Deserialize;

/// What `latch plugin build` was asked for.
#[derive(Debug, Clone)]
pub(crate) struct BuildRequest {
    /// A workspace of plugins, or one plugin's folder.
    pub(crate) workspace: PathBuf,
    /// Where components go; usually `target/plugins`.
    pub(crate) out: PathBuf,
    pub(crate) toolchain: ToolchainChoice,
    /// The packages and projects to build; all if empty.
    pub(crate) packages: Vec<String>,
    /// The languages to build; if this and `packages` are empty, Rust where there is any, else all.
    pub(crate) languages: Vec<Language>,
    /// Where tools that had to be installed go, usually `target/tools`. What cargo keeps goes beside it, to `guests`.
    pub(crate) tools_dir: PathBuf,
    /// Whether "all plugins" includes the fixtures.
    pub(crate) fixtures: bool,
}

/// What a plugin is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Language {
    Rust,
    #[serde(rename = "js")]
    JavaScript,
    Python,
    C,
}

impl Language {
    pub(crate) const ALL: [Language; 4] = [Language::Rust, Language::JavaScript, Language::Python, Language::C];

    /// As it is written on the command line and in manifests.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::JavaScript => "js",
            Language::Python => "python",
            Language::C => "c",
        }
    }
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
    pub(crate) language: Language,
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

    let chosen = Chosen::among(request, &folder)?;
    let mut built = Vec::new();
    if let Some(packages) = chosen.packages {
        let places = rust::Places { folder: &folder, tools: &tools, guests: &guests, out: &out };
        built = rust::build(&places, &packages, request, &host_env, say)?;
    }
    for project in &chosen.projects {
        built.push(foreign::build(project, &tools, &guests, &out, &host_env, say)?);
    }
    Ok(built)
}

/// What of a workspace is to be built.
struct Chosen {
    /// Names of cargo packages, all plugins if empty; nothing if cargo has nothing to do.
    packages: Option<Vec<String>>,
    projects: Vec<Project>,
}

impl Chosen {
    fn among(request: &BuildRequest, folder: &Path) -> anyhow::Result<Chosen> {
        let has_cargo = folder.join("Cargo.toml").is_file();
        let found = Project::find(folder)?;
        let of_language = |language| request.languages.is_empty() || request.languages.contains(&language);
        if request.packages.is_empty() {
            let only_rust = request.languages.is_empty() && has_cargo;
            let projects: Vec<_> =
                found.into_iter().filter(|project| !only_rust && of_language(project.manifest.lang)).collect();
            let packages = (has_cargo && of_language(Language::Rust)).then(Vec::new);
            if packages.is_none() && projects.is_empty() {
                let languages: Vec<_> = request.languages.iter().map(|language| language.name()).collect();
                bail!("{} has no plugin in {}", folder.display(), languages.join(", "));
            }
            return Ok(Chosen { packages, projects });
        }
        let (mut projects, labels): (Vec<_>, Vec<_>) =
            (Vec::new(), found.iter().map(|project| project.label().to_owned()).collect());
        for project in found {
            if request.packages.iter().any(|name| name == project.label()) && of_language(project.manifest.lang) {
                projects.push(project);
            }
        }
        let others: Vec<_> = request.packages.iter().filter(|name| !labels.contains(name)).cloned().collect();
        if !has_cargo && let Some(name) = others.first() {
            bail!("no plugin is called {name}\nhint: there are {}", labels.join(", "));
        }
        let packages = (!others.is_empty() && of_language(Language::Rust)).then_some(others);
        Ok(Chosen { packages, projects })
    }
}

/// The folder to build, checked before anything is installed on its behalf.
fn plugin_folder(given: &Path) -> anyhow::Result<PathBuf> {
    let folder = fs::canonicalize(given).with_context(|| format!("no plugins at {}", given.display()))?;
    if !folder.join("Cargo.toml").is_file() && Project::find(&folder)?.is_empty() {
        bail!("no plugins at {}\nhint: name a folder that has a Cargo.toml or a {MANIFEST}", given.display());
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
