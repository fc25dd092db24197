//! What a configuration takes from outside of its text: files beside it, and variables.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// How to read a text file.
pub(super) type ReadFile<'a> = dyn Fn(&Path) -> io::Result<String> + 'a;
/// How to list the files of a folder.
pub(super) type ListFolder<'a> = dyn Fn(&Path) -> io::Result<Vec<PathBuf>> + 'a;
/// How to look up a variable.
pub(super) type Variable<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Where to look, and what was looked at.
pub(super) struct Sources<'a> {
    /// The folder of the configuration file, absolute.
    pub(super) base: &'a Path,
    pub(super) read_file: &'a ReadFile<'a>,
    pub(super) list_folder: &'a ListFolder<'a>,
    pub(super) variable: &'a Variable<'a>,
    /// Files and folders, read or not: a change of any of them is a change of the configuration.
    pub(super) seen: RefCell<BTreeSet<PathBuf>>,
}

impl Sources<'_> {
    /// A path that stands in the file.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.base.join(written)
    }

    /// # Errors
    /// Says why there is no text, without the text.
    pub(super) fn file(&self, written: &str) -> Result<String, String> {
        let path = self.path(written);
        let text = (self.read_file)(&path).map_err(|error| format!("{written} cannot be read: {error}"));
        self.seen.borrow_mut().insert(path);
        text
    }

    /// Each `*.connstr` of a folder, with its name for messages, in order.
    ///
    /// # Errors
    /// Says which of them cannot be read, and why.
    pub(super) fn connection_files(&self, written: &str) -> Result<Vec<(String, String)>, String> {
        let path = self.path(written);
        let files = (self.list_folder)(&path).map_err(|error| format!("{written} cannot be read: {error}"));
        self.seen.borrow_mut().insert(path);
        let mut files = files?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "connstr"));
        files.sort();
        let names = files.iter().filter_map(|file| Some(format!("{written}/{}", file.file_name()?.to_str()?)));
        names.map(|name| self.file(&name).map(|text| (name, text))).collect()
    }

    /// # Errors
    /// Says that there is none.
    pub(super) fn variable(&self, name: &str) -> Result<String, String> {
        (self.variable)(name).ok_or_else(|| format!("the variable {name} is not set, or is not text"))
    }
}
