//! The name of a plugin.

use std::fmt;
use std::sync::Arc;

/// The name of a plugin, which is its file's name without `.wasm`: up to 64 of `a`-`z`, `0`-`9`, `-`, `_` and `.`, the
/// first one a letter or a digit. It names files, twin keys and log fields, so it is kept plain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName(Arc<str>);

/// Why a text is no plugin name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginNameError {
    #[error("a plugin name is empty")]
    Empty,
    #[error("the plugin name {name:?} is longer than {LIMIT} characters")]
    TooLong { name: String },
    #[error("the plugin name {name:?} begins with {first:?}; a letter a-z or a digit must come first")]
    First { name: String, first: char },
    #[error("the plugin name {name:?} contains {character:?}; allowed are a-z, 0-9, '-', '_' and '.'")]
    Character { name: String, character: char },
}

impl PluginName {
    /// # Errors
    /// Names the first rule that `text` breaks.
    pub fn parse(text: &str) -> Result<PluginName, PluginNameError> {
        let name = || text.chars().take(LIMIT).collect();
        let Some(first) = text.chars().next() else { return Err(PluginNameError::Empty) };
        if let Some(character) = text.chars().find(|&c| !is_plain(c) && !"-_.".contains(c)) {
            return Err(PluginNameError::Character { name: name(), character });
        }
        if !is_plain(first) {
            return Err(PluginNameError::First { name: name(), first });
        }
        if text.len() > LIMIT {
            return Err(PluginNameError::TooLong { name: name() });
        }
        Ok(PluginName(Arc::from(text)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for PluginName {
    type Err = PluginNameError;
    fn from_str(text: &str) -> Result<PluginName, PluginNameError> {
        PluginName::parse(text)
    }
}

impl std::borrow::Borrow<str> for PluginName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

fn is_plain(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit()
}

/// Short enough for a twin key and a column of a table.
const LIMIT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_only() {
        for name in ["lock-door", "a", "3d_print.v2"] {
            assert_eq!(PluginName::parse(name).map(|name| name.to_string()), Ok(name.to_owned()));
        }
        for name in ["", ".hidden", "-x", "Lock", "a/b", "..", "türe", &"a".repeat(65)] {
            assert!(PluginName::parse(name).is_err(), "{name}");
        }
    }
}
