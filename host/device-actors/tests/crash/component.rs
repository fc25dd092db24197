//! The plugin under the kills, made of a core module written by hand.

use std::path::{Path, PathBuf};

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A component for the world of `ledger.wit`.
pub(crate) fn ledger() -> Vec<u8> {
    let contract = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    let mut resolve = Resolve::default();
    for package in ["device", "plugin"] {
        resolve.push_dir(contract.join(package)).expect("the contract");
    }
    let package = resolve.push_str(Path::new("ledger.wit"), include_str!("ledger.wit")).expect("a world");
    let world = resolve.select_world(&[package], Some("ledger")).expect("the world");
    let mut core = wat::parse_str(include_str!("ledger.wat")).expect("a core module");
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8).expect("a world for the module");
    let mut encoder = ComponentEncoder::default().validate(true).module(&core).expect("what the world asks for");
    encoder.encode().expect("a component")
}
