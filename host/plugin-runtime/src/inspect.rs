//! A look at a file before any of it is compiled: is it whole, is it a component, could it be a plugin?

use semver::{Version, VersionReq};
use wasmparser::{Encoding, Parser, Payload};

use crate::version::LoadError;

/// Answers direct methods.
pub(crate) const METHODS: &str = "iothub:plugin/methods";
/// Reacts to desired properties.
pub(crate) const REACTIONS: &str = "iothub:plugin/reactions";
/// Gets messages.
pub(crate) const MESSAGES: &str = "iothub:plugin/messages";

/// Is called when a timer is due. Nothing sets one without the others, so it makes no plugin by itself.
pub(crate) const TICKS: &str = "iothub:plugin/ticks";

/// Is told when a version takes over.
pub(crate) const LIFECYCLE: &str = "iothub:plugin/lifecycle";

/// What a file says about itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inspection {
    /// The text of the custom section `latch:version`, if it is a version.
    pub(crate) semver: Option<String>,
}

/// Parse `wasm` to its end.
///
/// # Errors
/// Says what the file is instead of a whole plugin. Costs no more than reading it.
pub(crate) fn inspect(wasm: &[u8], size_limit: usize) -> Result<Inspection, LoadError> {
    check_beginning(wasm, size_limit)?;
    let mut semver = None;
    let mut exports = Vec::new();
    // Modules and components inside come in the same stream, each with an `End` of its own.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| damaged(wasm, &error))? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => return Err(LoadError::CoreModule),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export.map_err(|error| damaged(wasm, &error))?.name.name.to_owned());
                }
            }
            Payload::CustomSection(section) if depth == 0 && section.name() == VERSION_SECTION => {
                semver = version(section.data());
            }
            _ => {}
        }
    }
    let plugin = [METHODS, REACTIONS, MESSAGES, LIFECYCLE];
    if !exports.iter().any(|name| plugin.iter().any(|interface| is_interface(name, interface))) {
        return Err(LoadError::World { exports: listed(&exports) });
    }
    Ok(Inspection { semver })
}

/// Whether the export called `name` is `interface` in a version that the host can call.
pub(crate) fn is_interface(name: &str, interface: &str) -> bool {
    let callable = VersionReq { comparators: vec![CALLABLE] };
    name.split_once('@')
        .filter(|(path, _)| *path == interface)
        .and_then(|(_, version)| Version::parse(version).ok())
        .is_some_and(|version| callable.matches(&version))
}

/// `^0.1.0`: additions within 0.1 keep what is there.
const CALLABLE: semver::Comparator = semver::Comparator {
    op: semver::Op::Caret,
    major: 0,
    minor: Some(1),
    patch: Some(0),
    pre: semver::Prerelease::EMPTY,
};

fn check_beginning(wasm: &[u8], size_limit: usize) -> Result<(), LoadError> {
    if wasm.is_empty() {
        return Err(LoadError::Empty);
    }
    if wasm.len() > size_limit {
        return Err(LoadError::TooLarge { size: wasm.len() as u64, limit: size_limit });
    }
    if wasm.starts_with(MAGIC) {
        return Ok(());
    }
    if MAGIC.starts_with(wasm) {
        return Err(LoadError::Truncated { bytes: wasm.len() });
    }
    if wasmtime::Engine::detect_precompiled(wasm).is_some() {
        return Err(LoadError::Precompiled);
    }
    let begins = &wasm[..wasm.len().min(SHOWN_BYTES)];
    match std::str::from_utf8(begins) {
        Ok(text) if !text.contains('\0') => Err(LoadError::Text { begins: text.to_owned() }),
        _ => Err(LoadError::NotWasm { begins: begins.iter().map(|byte| format!("{byte:02x}")).collect() }),
    }
}

fn damaged(wasm: &[u8], error: &wasmparser::BinaryReaderError) -> LoadError {
    // There is no kind to match on; the parser says this of a file that stops within a section or before one.
    if error.message().starts_with("unexpected end") {
        return LoadError::Truncated { bytes: wasm.len() };
    }
    LoadError::Malformed { offset: error.offset(), reason: error.message().to_owned() }
}

fn version(section: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(section).ok()?.trim();
    let plausible = text.len() <= VERSION_LIMIT && Version::parse(text).is_ok();
    plausible.then(|| text.to_owned())
}

fn listed(exports: &[String]) -> String {
    let mut text = match exports {
        [] => return "nothing".to_owned(),
        _ => exports.iter().take(SHOWN_EXPORTS).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    if exports.len() > SHOWN_EXPORTS {
        text.push_str(&format!(" and {} more", exports.len() - SHOWN_EXPORTS));
    }
    text
}

/// What every WebAssembly file begins with.
const MAGIC: &[u8] = b"\0asm";
/// Written by `latch plugin build`.
const VERSION_SECTION: &str = "latch:version";
/// Longer texts are no versions that a person gave; they would only fill logs and twins.
const VERSION_LIMIT: usize = 64;
/// Enough to recognise a file.
const SHOWN_BYTES: usize = 16;
/// Enough to recognise a world.
const SHOWN_EXPORTS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Component};

    const LIMIT: usize = 1 << 20;

    fn refusal(wasm: &[u8]) -> String {
        inspect(wasm, LIMIT).expect_err("refused").to_string()
    }

    #[test]
    fn files_that_are_something_else_are_named() {
        let module = wat::parse_str("(module)").expect("valid");
        for (wasm, expect) in [
            (&b""[..], "the file is empty"),
            (b"\0as", "the file ends early, after 3 bytes"),
            (b"#!/bin/sh\nexit 0", "the file is text, not a compiled component: it begins with \"#!/bin/sh\\nexit 0\""),
            (b"\x7fELF\x01\x02\x03\xff", "the file is no WebAssembly: it begins with 7f454c46010203ff"),
            (
                &module,
                "the file is a core module, not a component; build it for wasm32-wasip2, or make a component of it \
                 with `wasm-tools component new`",
            ),
        ] {
            assert_eq!(refusal(wasm), expect);
        }
        assert!(refusal(&vec![0; LIMIT + 1]).contains("the limit is 1048576"));
    }

    #[test]
    fn a_component_cut_anywhere_is_not_whole() {
        let wasm = Component::echo("lockDoor").wasm();
        assert_eq!(inspect(&wasm, LIMIT), Ok(Inspection { semver: None }));
        // One cut leaves a component that is whole by itself: the one before the names for debuggers, which come last.
        let whole: Vec<usize> = (0..wasm.len()).filter(|&length| inspect(&wasm[..length], LIMIT).is_ok()).collect();
        assert_eq!(whole.len(), 1, "{whole:?} of {}", wasm.len());
        assert_eq!(refusal(&wasm[..wasm.len() - 1]), format!("the file ends early, after {} bytes", wasm.len() - 1));
    }

    #[test]
    fn a_component_of_another_world_is_told_what_is_needed() {
        let wasm =
            wat::parse_str(r#"(component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#).expect("valid");
        assert_eq!(
            refusal(&wasm),
            "the component exports `wasi:cli/run@0.2.0`; a plugin exports `iothub:plugin/methods@0.1.0`, \
             `iothub:plugin/reactions@0.1.0`, `iothub:plugin/messages@0.1.0`, `iothub:plugin/lifecycle@0.1.0` or \
             several of them"
        );
        assert!(refusal(&wat::parse_str("(component)").expect("valid")).starts_with("the component exports nothing;"));
    }

    #[test]
    fn later_additions_to_an_interface_are_the_same_interface() {
        for (name, expect) in [
            ("iothub:plugin/methods@0.1.0", true),
            ("iothub:plugin/methods@0.1.7", true),
            ("iothub:plugin/methods@0.2.0", false),
            ("iothub:plugin/methods", false),
            ("iothub:plugin/reactions@0.1.0", false),
        ] {
            assert_eq!(is_interface(name, METHODS), expect, "{name}");
        }
    }

    #[test]
    fn the_version_is_read_if_it_is_one() {
        for (text, expect) in
            [("1.2.3", Some("1.2.3")), ("2.0.0-rc.1\n", Some("2.0.0-rc.1")), ("latest", None), ("", None)]
        {
            let wasm = testing::with_version(Component::echo("lockDoor").wasm(), text);
            assert_eq!(inspect(&wasm, LIMIT), Ok(Inspection { semver: expect.map(str::to_owned) }), "{text:?}");
        }
    }
}
