//! Plugins in languages that cargo does not build. Each is a folder with a `latch-plugin.toml`.
//!
//! ```toml
//! name = "lock-door"                              # of the plugin, and of its component's file
//! version = "1.0.0"
//! lang = "js"                                     # or python, or c
//! world = "method-handler"                        # of the last package in `wit`
//! source = "lock-door.js"                         # for C also a list
//! wit = ["../../wit/device", "../../wit/plugin"]  # folders of packages, each after those that it uses
//! subfolder = "lang/js"                           # of OUT; for a plugin that another project builds, too
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use plugin_runtime::PluginName;
use serde::Deserialize;

use super::Language;

/// What makes a folder a project.
pub(super) const MANIFEST: &str = "latch-plugin.toml";

#[derive(Debug)]
pub(super) struct Project {
    pub(super) folder: PathBuf,
    pub(super) manifest: Manifest,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) lang: Language,
    pub(super) world: String,
    pub(super) source: Sources,
    pub(super) wit: Vec<PathBuf>,
    pub(super) subfolder: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Sources {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Sources {
    pub(super) fn all(&self) -> &[PathBuf] {
        match self {
            Sources::One(source) => std::slice::from_ref(source),
            Sources::Many(sources) => sources,
        }
    }
}

impl Project {
    /// The project in `folder` itself or, if it is none, those directly in it.
    pub(super) fn find(folder: &Path) -> anyhow::Result<Vec<Project>> {
        if folder.join(MANIFEST).is_file() {
            return Ok(vec![Project::read(folder)?]);
        }
        let entries = folder.read_dir().and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.with_context(|| format!("cannot read {}", folder.display()))?;
        let mut folders: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        folders.sort();
        folders.iter().filter(|folder| folder.join(MANIFEST).is_file()).map(|folder| Project::read(folder)).collect()
    }

    fn read(folder: &Path) -> anyhow::Result<Project> {
        let file = folder.join(MANIFEST);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let manifest = Manifest::parse(&text).with_context(|| format!("{} is wrong", file.display()))?;
        Ok(Project { folder: folder.to_owned(), manifest })
    }

    /// What the project is called on the command line: its folder's name, since two may build one plugin.
    pub(super) fn label(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).unwrap_or(&self.manifest.name)
    }

    /// Whole paths of the sources.
    pub(super) fn sources(&self) -> anyhow::Result<Vec<PathBuf>> {
        let sources = self.manifest.source.all().iter().map(|source| {
            let path = self.folder.join(source);
            match path.is_file() {
                true => Ok(path),
                false => bail!("{} does not exist; {MANIFEST} names it as a source", path.display()),
            }
        });
        sources.collect()
    }
}

impl Manifest {
    fn parse(text: &str) -> anyhow::Result<Manifest> {
        let manifest: Manifest = toml::from_str(text)?;
        PluginName::parse(&manifest.name).with_context(|| format!("no plugin can be called {:?}", manifest.name))?;
        if manifest.lang == Language::Rust {
            bail!("a plugin in Rust is a cargo package, with a Cargo.toml");
        }
        if manifest.source.all().is_empty() || (manifest.lang != Language::C && manifest.source.all().len() > 1) {
            bail!("`source` names one file; only a plugin in C may have more");
        }
        if manifest.wit.is_empty() {
            bail!("`wit` names no folder");
        }
        let outside = |path: &PathBuf| path.components().any(|part| !matches!(part, std::path::Component::Normal(_)));
        if manifest.subfolder.as_ref().is_some_and(outside) {
            bail!("`subfolder` leads out of the output folder");
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = 'door'\nversion = '1.0.0'\nlang = 'js'\nworld = 'w'\nsource = 'a.js'\nwit = ['wit']\n";

    fn refusal(text: &str) -> String {
        Manifest::parse(text).err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn a_manifest_says_all_or_is_refused() {
        let manifest = Manifest::parse(GOOD).expect("a good manifest");
        assert_eq!((manifest.lang, manifest.source.all()), (Language::JavaScript, &[PathBuf::from("a.js")][..]));
        let c = GOOD.replace("'js'", "'c'").replace("'a.js'", "['a.c', 'b.c']");
        assert_eq!(Manifest::parse(&c).expect("a good manifest").source.all().len(), 2);
        for (text, expect) in [
            (GOOD.replace("name = 'door'", ""), "missing field `name`"),
            (GOOD.replace("'door'", "'../door'"), "no plugin can be called \"../door\""),
            (GOOD.replace("'js'", "'cobol'"), "unknown variant `cobol`"),
            (GOOD.replace("'js'", "'rust'"), "with a Cargo.toml"),
            (GOOD.replace("'a.js'", "['a.js', 'b.js']"), "only a plugin in C"),
            (format!("{GOOD}subfolder = '../x'\n"), "leads out"),
            (format!("{GOOD}out = 'x'\n"), "unknown field `out`"),
        ] {
            assert!(refusal(&text).contains(expect), "{text}: {}", refusal(&text));
        }
    }
}
