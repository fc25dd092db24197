//! Building one project in a language other than Rust: only if something has changed, by that language's own tool.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ring::digest::{Context as Digest, SHA256};

use super::project::Project;
use super::target_folder::folder_name;
use super::{BuiltPlugin, HostEnv, Language, PluginKind, c, component, javascript, python};

/// What one build needs to know.
pub(super) struct Build<'a> {
    pub(super) project: &'a Project,
    /// Where tools are installed.
    pub(super) tools: &'a Path,
    /// What the build makes on its way, and keeps for the next; its own.
    pub(super) folder: PathBuf,
    pub(super) host_env: &'a HostEnv,
}

impl Build<'_> {
    /// The contract, in the layout that every tool reads: a package, and those that it uses in `deps`.
    pub(super) fn wit(&self) -> PathBuf {
        self.folder.join("wit")
    }

    /// A copy of the project's files, for tools that write beside what they read.
    pub(super) fn copy_sources(&self) -> anyhow::Result<PathBuf> {
        let copy = self.folder.join("sources");
        clear(&copy)?;
        copy_files(&self.project.folder, &copy)?;
        Ok(copy)
    }

    pub(super) fn component(&self) -> PathBuf {
        self.folder.join("component.wasm")
    }
}

/// Builds `project` and puts its component into `out`.
pub(super) fn build(
    project: &Project,
    tools: &Path,
    guests: &Path,
    out: &Path,
    host_env: &HostEnv,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<BuiltPlugin> {
    let language = project.manifest.lang;
    let folder = guests.join(language.name()).join(folder_name(&project.folder));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let build = Build { project, tools, folder, host_env };

    let stamp = stamp(project)?;
    let stamp_file = build.folder.join("stamp");
    let is_fresh = fs::read_to_string(&stamp_file).is_ok_and(|kept| kept == stamp) && build.component().is_file();
    if !is_fresh {
        // Whatever happens below, what is there now is not what the stamp speaks of.
        remove(&stamp_file)?;
        assemble_wit(project, &build.wit())?;
        let tool = match language {
            Language::JavaScript => javascript::componentize,
            Language::Python => python::componentize,
            Language::C => c::componentize,
            Language::Rust => bail!("a plugin in Rust is a cargo package"),
        };
        tool(&build, say).with_context(|| format!("cannot build {}", project.label()))?;
        fs::write(&stamp_file, &stamp).with_context(|| format!("cannot write {}", stamp_file.display()))?;
    }
    place(&build, out)
}

fn place(build: &Build, out: &Path) -> anyhow::Result<BuiltPlugin> {
    let manifest = &build.project.manifest;
    let made = build.component();
    let made = fs::read(&made).with_context(|| format!("cannot read {}", made.display()))?;
    let marked = component::with_version(made, &manifest.version)?;
    let folder = manifest.subfolder.as_ref().map_or_else(|| out.to_owned(), |subfolder| out.join(subfolder));
    let path = folder.join(format!("{}.wasm", manifest.name));
    let changed = component::replace(&path, &marked).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BuiltPlugin {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        language: manifest.lang,
        path,
        kind: PluginKind::Current,
        size: marked.len() as u64,
        changed,
    })
}

/// The content of everything that the component is made of. Two builds with one stamp make one component.
fn stamp(project: &Project) -> anyhow::Result<String> {
    let mut digest = Digest::new(&SHA256);
    let mut add = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    let tool = match project.manifest.lang {
        Language::JavaScript => javascript::TOOL,
        Language::Python => python::TOOL,
        Language::C | Language::Rust => c::TOOL,
    };
    tool.iter().for_each(|text| add(text.as_bytes()));
    let mut folders = vec![project.folder.clone()];
    folders.extend(project.manifest.wit.iter().map(|wit| project.folder.join(wit)));
    for folder in folders {
        for file in files(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            add(file.strip_prefix(&folder).unwrap_or(&file).as_os_str().as_encoded_bytes());
            add(&fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
        }
    }
    let hash = digest.finish();
    Ok(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Every file in `folder`, in order, without what tools leave there and what only tests read.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = folder.read_dir()?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') || NO_SOURCES.contains(&&*name) {
            continue;
        }
        // Follows links, as the tools do.
        if fs::metadata(entry.path())?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Copies the packages of the contract together: the last to the top, the others into `deps`.
fn assemble_wit(project: &Project, wit: &Path) -> anyhow::Result<()> {
    clear(wit)?;
    let count = project.manifest.wit.len();
    for (number, package) in project.manifest.wit.iter().enumerate() {
        let to = if number + 1 == count { wit.to_owned() } else { wit.join("deps").join(number.to_string()) };
        copy_files(&project.folder.join(package), &to)?;
    }
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copy = || -> io::Result<()> {
        for file in files(from)? {
            let copy = to.join(file.strip_prefix(from).unwrap_or(&file));
            copy.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::copy(&file, copy)?;
        }
        Ok(())
    };
    copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn clear(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn remove(file: &Path) -> anyhow::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// What never becomes part of a component.
const NO_SOURCES: [&str; 4] = ["__pycache__", "node_modules", "target", "tests"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_follows_sources_and_contract_alone() {
        let folder = std::env::temp_dir().join(format!("latch-foreign-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        };
        write("wit/a.wit", "package a:b;");
        write("door/a.js", "1");
        write(
            "door/latch-plugin.toml",
            "name = 'd'\nversion = '1.0.0'\nlang = 'js'\nworld = 'w'\nsource = 'a.js'\nwit = ['../wit']\n",
        );
        let stamp = || stamp(&Project::find(&folder).expect("readable")[0]).expect("readable");
        let first = stamp();
        write("door/tests/x.toml", "");
        write("door/node_modules/x.js", "");
        write("door/.hidden", "");
        assert_eq!(stamp(), first);
        write("wit/a.wit", "package a:c;");
        let second = stamp();
        write("door/lib/b.js", "2");
        let third = stamp();
        assert!(second != first && third != first && third != second);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
