//! What a component says about itself, for people. Nothing is compiled and nothing is judged.

use wasmparser::{BinaryReaderError, Encoding, Parser, Payload};

/// A component, from the outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The names of what it exports, such as `iothub:plugin/methods@0.1.0`.
    pub exports: Vec<String>,
    /// The names of what it imports.
    pub imports: Vec<String>,
    /// Bytes of the linear memories that the modules inside begin with. An instance may take more at once.
    pub initial_memory: u64,
}

impl Description {
    /// The grants of which it could make use, by what it imports. Languages' runtimes import much of WASI whether a
    /// plugin uses it or not, so this says what it cannot use rather than what it needs.
    pub fn may_use(&self) -> Vec<&'static str> {
        let imports = |names: &[&str]| {
            self.imports.iter().filter_map(|name| name.split('@').next()).any(|import| names.contains(&import))
        };
        GRANTS.iter().filter(|(_, names)| imports(names)).map(|(grant, _)| *grant).collect()
    }
}

/// Grants, and the interfaces of which a component needs one to use them. Nothing in a folder can be opened without the
/// preopened one, and no socket is of use to a component that cannot make one.
const GRANTS: [(&str, &[&str]); 5] = [
    ("environment", &["wasi:cli/environment"]),
    ("addresses", &["wasi:sockets/tcp-create-socket", "wasi:sockets/udp-create-socket", "wasi:sockets/ip-name-lookup"]),
    ("folder", &["wasi:filesystem/preopens"]),
    ("clock", &["wasi:clocks/wall-clock", "wasi:clocks/monotonic-clock"]),
    ("randomness", &["wasi:random/random"]),
];

/// Describe `wasm`; nothing if it is no whole component.
pub fn describe(wasm: &[u8]) -> Option<Description> {
    read(wasm).ok().flatten()
}

fn read(wasm: &[u8]) -> Result<Option<Description>, BinaryReaderError> {
    let mut description = Description::default();
    // Modules and components inside come in the same stream, each with an `End` of its own.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => return Ok(None),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    description.exports.push(export?.name.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    description.imports.push(import?.name.name.to_owned());
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory?;
                    let page =
                        1_u64 << memory.page_size_log2.unwrap_or(DEFAULT_PAGE_SIZE_LOG2).min(DEFAULT_PAGE_SIZE_LOG2);
                    description.initial_memory =
                        description.initial_memory.saturating_add(memory.initial.saturating_mul(page));
                }
            }
            _ => {}
        }
    }
    Ok(Some(description))
}

/// 64 KiB.
const DEFAULT_PAGE_SIZE_LOG2: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Component;

    #[test]
    fn what_a_component_exports_imports_and_begins_with() {
        let description = describe(&Component::echo("lockDoor").wasm()).expect("a component");
        assert!(description.exports.iter().any(|name| name == "iothub:plugin/methods@0.1.0"), "{description:?}");
        assert!(description.imports.iter().any(|name| name.starts_with("iothub:device/")), "{description:?}");
        assert!(description.initial_memory >= 64 << 10, "{description:?}");
    }

    #[test]
    fn imports_tell_which_grants_could_be_used() {
        let may_use = |imports: &[&str]| {
            let imports = imports.iter().map(|&name| name.to_owned()).collect();
            Description { imports, ..Description::default() }.may_use()
        };
        assert!(
            may_use(&["iothub:device/state@0.1.0", "wasi:io/streams@0.2.0", "wasi:random/insecure@0.2.0"]).is_empty()
        );
        assert_eq!(may_use(&["wasi:random/random@0.2.12", "wasi:clocks/wall-clock@0.2.0"]), ["clock", "randomness"]);
        let all =
            ["wasi:filesystem/preopens@0.2.3", "wasi:sockets/udp-create-socket@0.2.0", "wasi:cli/environment@0.2.0"];
        assert_eq!(may_use(&all), ["environment", "addresses", "folder"]);
    }

    #[test]
    fn what_is_no_component_is_not_described() {
        let module = wat::parse_str("(module (memory 1))").expect("valid");
        let component = wat::parse_str("(component)").expect("valid");
        assert_eq!(describe(&component), Some(Description::default()));
        for other in [&module[..], b"", b"text", &component[..4]] {
            assert_eq!(describe(other), None);
        }
    }
}
