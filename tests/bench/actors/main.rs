//! What actors and plugins cost, measured without hub and connections: `cargo bench -p cli --bench actors`.
//!
//! Each part is bounded in number, ends by itself, prints figures and fails on a wrong or lost answer. Names of parts
//! choose some of them, `NAME=NUMBER` sets a size: `-- swaps calls=1000000 swaps=1000`. The figures that were seen are in
//! `../README.md`.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]

#[path = "../../harness/mod.rs"]
mod harness;

mod call_cost;
mod canary;
mod figures;
mod fleet;
mod hostile;
mod landing;
mod many;
mod swaps;

use std::collections::BTreeMap;

/// What was asked for on the command line.
pub(crate) struct Asked {
    parts: Vec<String>,
    sizes: BTreeMap<String, usize>,
}

impl Asked {
    fn parse(arguments: impl Iterator<Item = String>) -> Asked {
        let mut asked = Asked { parts: Vec::new(), sizes: BTreeMap::new() };
        // cargo passes `--bench`, which is no name of a part.
        for argument in arguments.filter(|argument| !argument.starts_with('-')) {
            match argument.split_once('=') {
                Some((name, size)) => {
                    let size = size.parse().unwrap_or_else(|_| panic!("{name}={size}: not a number"));
                    asked.sizes.insert(name.to_owned(), size);
                }
                None => asked.parts.push(argument),
            }
        }
        asked
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    /// The size of that name, if one was given.
    pub(crate) fn size(&self, name: &str, default: usize) -> usize {
        self.sizes.get(name).copied().unwrap_or(default)
    }
}

fn main() {
    let asked = Asked::parse(std::env::args().skip(1));
    for (name, run) in PARTS {
        if asked.wants(name) {
            println!("== {name}");
            run(&asked);
        }
    }
}

type Part = fn(&Asked);

/// The last one listens to spans from then on, for which the others would pay.
const PARTS: &[(&str, Part)] = &[
    ("call", call_cost::run),
    ("many", many::run),
    ("swaps", swaps::run),
    ("hostile", hostile::run),
    ("canary", canary::run),
    ("landing", landing::run),
];
