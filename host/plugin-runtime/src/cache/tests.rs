use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use tempfile::TempDir;
use wasmtime::Config;

use super::*;
use crate::runtime::Runtime;
use crate::settings::RuntimeSettings;
use crate::testing::{self, source};
use crate::version;

/// A data folder with a cache in it.
struct Place {
    data: TempDir,
    settings: CacheSettings,
}

impl Place {
    fn new() -> Place {
        let data = tempfile::tempdir().expect("a folder");
        let settings = CacheSettings::new(data.path().join("cache"), data.path().join("cache.key"));
        Place { data, settings }
    }

    fn open(&self) -> Cache {
        Cache::open(&self.settings, engine()).expect("a cache")
    }

    /// The one entry.
    fn entry(&self) -> PathBuf {
        let mut files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        self.settings.folder.join(files.remove(0))
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.settings.folder).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    }
}

/// Engines are dear, and nothing here depends on having one of its own.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(Engine::default)
}

/// A component that differs by `number`.
fn component(number: u32) -> (String, Component) {
    let text = format!("(component (core module (func (result i32) i32.const {number})))");
    let wasm = wat::parse_str(text).expect("a component");
    (version::hash(&wasm), Component::from_binary(engine(), &wasm).expect("it compiles"))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777
}

fn stats(hits: u64, misses: u64, rejected: u64, written: u64, evicted: u64) -> CacheStats {
    CacheStats { hits, misses, rejected, written, evicted }
}

#[test]
fn what_was_compiled_is_there_when_the_cache_is_opened_again() {
    let place = Place::new();
    let (hash, compiled) = component(1);
    let cache = place.open();
    assert!(cache.get(&hash).is_none());
    cache.put(&hash, &compiled);
    assert_eq!(cache.stats(), stats(0, 1, 0, 1, 0));
    let cache = place.open();
    assert!(cache.get(&hash).is_some());
    assert!(cache.get(&component(2).0).is_none());
    assert_eq!(cache.stats(), stats(1, 1, 0, 0, 0));
    assert_eq!((mode(&place.settings.folder), mode(&place.entry())), (0o700, 0o600));
    assert_eq!(mode(&place.settings.key_file), 0o600);
}

#[test]
fn a_runtime_compiles_once_for_all_its_successors() {
    let place = Place::new();
    let wasm = testing::Component::echo("lockDoor").wasm();
    let settings = || RuntimeSettings { max_resident: 1, max_in_flight: 1, ..RuntimeSettings::default() };
    for expected in [stats(0, 1, 0, 1, 0), stats(1, 0, 0, 0, 0)] {
        let runtime = Runtime::with_cache(settings(), &place.settings).expect("a runtime");
        for _ in 0..2 {
            let version = runtime.load(source("p", wasm.clone())).expect("a good plugin");
            assert_eq!(version.methods()[0].as_str(), "lockDoor");
        }
        assert_eq!(runtime.cache_stats(), Some(expected), "the second time it is in memory");
    }
    assert_eq!(testing::runtime().cache_stats(), None);
}

#[test]
fn an_entry_that_is_not_as_it_was_written_is_replaced() {
    let flip = |at: fn(usize) -> usize| {
        move |path: &Path| {
            let mut content = fs::read(path).expect("there");
            let at = at(content.len());
            content[at] ^= 1;
            fs::write(path, content).expect("written");
        }
    };
    let cut = |length: fn(usize) -> usize| {
        move |path: &Path| {
            let content = fs::read(path).expect("there");
            fs::write(path, &content[..length(content.len())]).expect("written");
        }
    };
    type Harm = Box<dyn Fn(&Path)>;
    let harms: [(&str, Harm); 9] = [
        ("the first byte", Box::new(flip(|_| 0))),
        ("a byte of the code", Box::new(flip(|length| length / 2))),
        ("the last byte", Box::new(flip(|length| length - 1))),
        ("half", Box::new(cut(|length| length / 2))),
        ("shorter than a tag", Box::new(cut(|_| 7))),
        ("empty", Box::new(cut(|_| 0))),
        ("writable by its group", Box::new(|path| set_mode(path, 0o620))),
        ("readable by all", Box::new(|path| set_mode(path, 0o604))),
        (
            "a pipe",
            Box::new(|path| {
                fs::remove_file(path).expect("ours");
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                    .expect("a pipe");
            }),
        ),
    ];
    for (what, harm) in harms {
        let place = Place::new();
        let (hash, compiled) = component(1);
        place.open().put(&hash, &compiled);
        harm(&place.entry());
        let cache = place.open();
        assert!(cache.get(&hash).is_none(), "{what}");
        assert_eq!((cache.stats(), place.files().len()), (stats(0, 1, 1, 0, 0), 0), "{what}");
        cache.put(&hash, &compiled);
        assert!(cache.get(&hash).is_some(), "{what}");
        assert_eq!(mode(&place.entry()), 0o600, "{what}");
    }
}

#[test]
fn a_link_is_neither_followed_nor_written_through() {
    let place = Place::new();
    let (hash, compiled) = component(1);
    place.open().put(&hash, &compiled);
    let (entry, elsewhere) = (place.entry(), place.data.path().join("elsewhere"));
    fs::rename(&entry, &elsewhere).expect("moved");
    let before = fs::read(&elsewhere).expect("there");
    symlink(&elsewhere, &entry).expect("linked");
    let cache = place.open();
    assert!(cache.get(&hash).is_none(), "although what it leads to is good");
    assert_eq!(cache.stats().rejected, 1);
    symlink(&elsewhere, &entry).expect("linked again");
    cache.put(&hash, &compiled);
    assert!(fs::symlink_metadata(&entry).expect("there").is_file());
    assert_eq!(fs::read(&elsewhere).expect("there"), before);
}

#[test]
fn no_entry_stands_in_for_another() {
    let place = Place::new();
    let ((one, compiled), (two, _)) = (component(1), component(2));
    let cache = place.open();
    cache.put(&one, &compiled);
    fs::rename(place.entry(), place.settings.folder.join(cache.name(&two))).expect("moved");
    assert!(cache.get(&two).is_none());
    assert_eq!(cache.stats(), stats(0, 1, 1, 1, 0));
}

#[test]
fn an_entry_of_another_key_is_worthless() {
    for spoil in [
        |file: &Path| fs::write(file, [7; KEY]).expect("written"),
        |file: &Path| fs::write(file, [7; KEY - 1]).expect("written"),
        |file: &Path| set_mode(file, 0o640),
        |file: &Path| fs::remove_file(file).expect("ours"),
        |file: &Path| {
            let copy = file.with_extension("copy");
            fs::rename(file, &copy).expect("moved");
            symlink(copy, file).expect("linked");
        },
    ] {
        let place = Place::new();
        let (hash, compiled) = component(1);
        place.open().put(&hash, &compiled);
        spoil(&place.settings.key_file);
        let cache = place.open();
        assert!(cache.get(&hash).is_none());
        assert_eq!(cache.stats().rejected, 1);
        cache.put(&hash, &compiled);
        assert!(place.open().get(&hash).is_some(), "the new key stays");
        let key = fs::symlink_metadata(&place.settings.key_file).expect("there");
        assert!(key.is_file() && key.permissions().mode() & 0o777 == 0o600);
    }
}

#[test]
fn another_engine_finds_nothing_and_clears_what_it_cannot_use() {
    let place = Place::new();
    let (hash, compiled) = component(1);
    place.open().put(&hash, &compiled);
    fs::write(place.settings.folder.join(".new-0123"), "half").expect("written");
    fs::write(place.settings.folder.join("README"), "a person's").expect("written");
    let other = Engine::new(Config::new().epoch_interruption(true)).expect("an engine");
    let cache = Cache::open(&place.settings, &other).expect("a cache");
    assert!(cache.get(&hash).is_none());
    assert_eq!((cache.stats(), place.files()), (stats(0, 1, 0, 0, 1), vec!["README".to_owned()]));
    assert_ne!(engine_id(&other), engine_id(engine()));
    assert_eq!(engine_id(&Engine::default()), engine_id(engine()));
}

#[test]
fn the_longest_unused_entries_make_room() {
    let mut place = Place::new();
    let components: Vec<_> = (1..5).map(component).collect();
    let cache = place.open();
    for (age, (hash, compiled)) in components.iter().enumerate() {
        cache.put(hash, compiled);
        let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
        let file = fs::File::options().write(true).open(place.settings.folder.join(cache.name(hash))).expect("there");
        file.set_modified(used).expect("ours");
    }
    assert!(cache.get(&components[0].0).is_some(), "used now");
    let size = fs::metadata(place.settings.folder.join(cache.name(&components[0].0))).expect("there").len();
    // Room for two and a half.
    place.settings.max_bytes = size * 5 / 2;
    let cache = place.open();
    let there = |cache: &Cache| {
        let files = place.files();
        components.iter().map(|(hash, _)| files.contains(&cache.name(hash))).collect::<Vec<_>>()
    };
    assert_eq!((there(&cache), cache.stats().evicted), (vec![true, false, false, true], 2));
    cache.put(&components[1].0, &components[1].1);
    assert_eq!((there(&cache), cache.stats().evicted), (vec![true, true, false, false], 3));
    cache.put(&components[1].0, &components[1].1);
    assert_eq!((there(&cache), cache.stats().evicted), (vec![true, true, false, false], 3), "it replaces itself");
}

#[test]
fn what_is_larger_than_the_cache_is_not_kept() {
    let mut place = Place::new();
    place.settings.max_bytes = 1000;
    let (hash, compiled) = component(1);
    let cache = place.open();
    cache.put(&hash, &compiled);
    assert_eq!((cache.stats(), place.files().len()), (stats(0, 0, 0, 0, 0), 0));
}

#[test]
fn a_folder_that_is_not_ours_alone_is_not_used() {
    let refused = |settings: &CacheSettings| Cache::open(settings, engine()).expect_err("refused").to_string();
    let place = Place::new();
    fs::create_dir(&place.settings.folder).expect("made");
    set_mode(&place.settings.folder, 0o770);
    assert!(refused(&place.settings).contains("its mode is 770"), "{}", refused(&place.settings));
    let link = CacheSettings { folder: place.data.path().join("link"), ..place.settings.clone() };
    set_mode(&place.settings.folder, 0o700);
    symlink(&place.settings.folder, &link.folder).expect("linked");
    assert!(refused(&link).contains("symbolic link"));
    let file = CacheSettings { folder: place.data.path().join("file"), ..place.settings.clone() };
    fs::write(&file.folder, "").expect("written");
    assert!(refused(&file).contains("no folder"));
    set_mode(place.data.path(), 0o722);
    assert!(refused(&place.settings).contains("its mode is 722"), "a key there could be anybody's");
}

#[test]
fn what_belongs_to_another_user_is_not_used() {
    let stranger = Some(rustix::fs::Uid::from_raw(12_345));
    let give = |path: &Path| rustix::fs::chown(path, stranger, None);
    let place = Place::new();
    let (hash, compiled) = component(1);
    place.open().put(&hash, &compiled);
    if let Err(error) = give(&place.entry()) {
        assert_eq!(error, rustix::io::Errno::PERM, "only root can give files away");
        return;
    }
    let cache = place.open();
    assert!(cache.get(&hash).is_none());
    assert_eq!(cache.stats().rejected, 1);
    give(&place.settings.folder).expect("it went before");
    let error = Cache::open(&place.settings, engine()).expect_err("refused").to_string();
    assert!(error.contains("belongs to user 12345"), "{error}");
}

#[test]
fn a_runtime_does_without_a_cache_that_cannot_be_used_or_written() {
    let place = Place::new();
    let settings = RuntimeSettings { max_resident: 1, max_in_flight: 1, ..RuntimeSettings::default() };
    let nowhere = CacheSettings::new(place.data.path().join("no/cache"), place.settings.key_file.clone());
    let runtime = Runtime::with_cache(settings.clone(), &nowhere).expect("a runtime");
    assert_eq!(runtime.cache_stats(), None);
    runtime.load(source("p", testing::Component::echo("a").wasm())).expect("a good plugin");

    let runtime = Runtime::with_cache(settings, &place.settings).expect("a runtime");
    // Whoever tests as root may write to every folder, but not to one that is gone.
    fs::remove_dir(&place.settings.folder).expect("empty");
    for method in ["a", "b"] {
        runtime.load(source("p", testing::Component::echo(method).wasm())).expect("a good plugin");
    }
    assert_eq!(runtime.cache_stats(), Some(stats(0, 2, 0, 0, 0)));
}
