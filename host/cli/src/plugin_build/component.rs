//! What becomes of a compiled component: its version is written into it, then it takes its place.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::bail;

/// The custom section that carries a plugin's version, as text.
pub(crate) const VERSION_SECTION: &str = "latch:version";

/// `component` with its version in a custom section at the end.
///
/// Written by hand: a custom section is the one part of the format that any program may append without knowing the
/// rest. <https://webassembly.github.io/spec/core/binary/modules.html#custom-section>
pub(super) fn with_version(mut component: Vec<u8>, version: &str) -> anyhow::Result<Vec<u8>> {
    if !component.starts_with(&COMPONENT_PREAMBLE) {
        bail!("the compiler made no component\nhint: a plugin is a library with `crate-type = [\"cdylib\"]`");
    }
    let mut content = Vec::new();
    push_name(&mut content, VERSION_SECTION);
    content.extend_from_slice(version.as_bytes());

    component.push(CUSTOM_SECTION_ID);
    push_unsigned_leb128(&mut component, content.len());
    component.extend_from_slice(&content);
    Ok(component)
}

fn push_name(bytes: &mut Vec<u8>, name: &str) {
    push_unsigned_leb128(bytes, name.len());
    bytes.extend_from_slice(name.as_bytes());
}

fn push_unsigned_leb128(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Makes `content` what `path` holds, in one step, and tells whether that was news.
///
/// A file that has this content already is not touched: a host that watches the folder would load it again.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<bool> {
    match fs::read(path) {
        Ok(there) if there == content => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
        }
        Err(error) => return Err(error),
    }
    // Not a name that ends in `.wasm`, so no host takes the half-written file for a plugin.
    let partial = path.with_extension("wasm.partial");
    fs::write(&partial, content)?;
    fs::rename(&partial, path)?;
    Ok(true)
}

/// `\0asm`, then version 13 of the layer 1, which is the component model's.
const COMPONENT_PREAMBLE: [u8; 8] = [0, b'a', b's', b'm', 0x0d, 0, 1, 0];

const CUSTOM_SECTION_ID: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn empty_component() -> Vec<u8> {
        COMPONENT_PREAMBLE.to_vec()
    }

    #[test]
    fn the_version_is_one_custom_section_at_the_end() {
        let marked = with_version(empty_component(), "1.0.0").unwrap();
        let mut expect = empty_component();
        expect.extend_from_slice(&[0, 19, 13]);
        expect.extend_from_slice(b"latch:version1.0.0");
        assert_eq!(marked, expect);
    }

    #[test]
    fn a_long_version_needs_a_longer_size() {
        let version = format!("1.0.0+{}", "x".repeat(200));
        let marked = with_version(empty_component(), &version).unwrap();
        // 1 byte of name length, 13 of name, 206 of version: 220 = 0b1_1011100.
        assert_eq!(&marked[8..11], &[0, 0xdc, 0x01]);
        assert_eq!(marked.len(), 8 + 3 + 220);
    }

    #[test]
    fn leb128() {
        for (number, expect) in
            [(0, vec![0]), (127, vec![127]), (128, vec![0x80, 1]), (624_485, vec![0xe5, 0x8e, 0x26])]
        {
            let mut bytes = Vec::new();
            push_unsigned_leb128(&mut bytes, number);
            assert_eq!(bytes, expect, "{number}");
        }
    }

    #[test]
    fn a_core_module_is_no_plugin() {
        let core_module = vec![0, b'a', b's', b'm', 1, 0, 0, 0];
        assert!(with_version(core_module, "1.0.0").is_err());
    }

    #[test]
    fn a_file_is_written_only_when_it_differs() {
        let folder = std::env::temp_dir().join(format!("latch-component-{}", std::process::id()));
        let path = folder.join("next/door.wasm");
        assert!(replace(&path, b"one").unwrap());
        assert!(!replace(&path, b"one").unwrap());
        assert!(replace(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.join("next")).unwrap().count(), 1, "nothing half-written is left");
        fs::remove_dir_all(&folder).unwrap();
    }
}
