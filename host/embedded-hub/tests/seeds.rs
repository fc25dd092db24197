//! Replays the seeds that fuzzing has left: small inputs that reach much, and each that once did harm.

use std::fs;
use std::path::Path;

#[path = "../../../tests/fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a library of its own, for the fuzzer")]
mod targets;

#[test]
fn every_seed_is_harmless() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds");
    let folders: Vec<_> = entries(&seeds).into_iter().map(|folder| folder.file_name().to_owned()).collect();
    let names: Vec<_> = targets::TARGETS.iter().map(|(name, _)| (*name).into()).collect::<Vec<std::ffi::OsString>>();
    assert!(folders.iter().all(|folder| names.contains(folder)), "{folders:?}: each folder is of a target");
    for (name, _) in targets::TARGETS {
        let seeds = entries(&seeds.join(name));
        assert!(!seeds.is_empty(), "{name} has seeds");
        for seed in seeds {
            let data = fs::read(seed.path()).expect("a seed can be read");
            // The harness shows what a test has said when it fails: the last seed named is the bad one.
            eprintln!("{}", seed.path().display());
            targets::run(name, &data);
        }
    }
}

fn entries(folder: &Path) -> Vec<fs::DirEntry> {
    let listing = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut entries: Vec<_> = listing.map(|entry| entry.expect("a folder can be read")).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries
}
