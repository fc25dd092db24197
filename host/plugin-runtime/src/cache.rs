//! Compiled components on disk, so that a restart, and a swap to a version that was compiled before, take no compiling.
//!
//! Compiled code is native code: whoever can put their own into this folder owns the host. So nothing is taken from it
//! that is not ours (`folder`), and nothing that does not carry a tag made with this installation's key. What the tag
//! is good for: it tells damage, half a file, a file moved to another version's name, one that came from another
//! installation with a copy or a backup, and one that somebody wrote who can write here but not read the key. What it is
//! not good for: whoever can read the key can make tags, and that is everybody who runs as the same user, and root. They
//! could change the program itself.
//!
//! An entry is a cheap copy of what compiling gives, so anything that is wrong with one costs no more than compiling
//! again, and nothing here fails a load.

mod folder;
mod sweep;

use std::fmt;
use std::hash::{Hash as _, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use wasmtime::Engine;
use wasmtime::component::Component;

use folder::{Folder, Refused};

/// Where compiled code is kept, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// The folder, for the cache alone; made if it is not there, with mode 0700. One that others could write to is not
    /// used.
    pub folder: PathBuf,
    /// The file with the key of the tags; made if it is not there, with mode 0600. In a folder that others cannot write
    /// to, and not in `folder`, so that a copy of the cache does not bring its key along.
    pub key_file: PathBuf,
    /// Bytes of all entries together. 512 MiB: 13 versions with a whole Python in them (39 MB each), or more than a
    /// thousand in Rust, and as much as a gateway with 8 GB of flash can spare.
    pub max_bytes: u64,
}

impl CacheSettings {
    /// With the default size.
    pub fn new(folder: PathBuf, key_file: PathBuf) -> CacheSettings {
        CacheSettings { folder, key_file, max_bytes: 512 << 20 }
    }
}

/// What a cache has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Components that came from the disk.
    pub hits: u64,
    /// Components that had to be compiled, for want of a good entry.
    pub misses: u64,
    /// Entries that were there and could not be trusted or used. Each is a miss as well.
    pub rejected: u64,
    /// Entries that were written.
    pub written: u64,
    /// Entries that were removed to make room, or because no engine like this one can use them.
    pub evicted: u64,
}

/// An open cache, for one engine.
pub(crate) struct Cache {
    engine: Engine,
    /// Names everything that compiled code depends on beside the component.
    engine_id: String,
    folder: Folder,
    key: hmac::Key,
    max_bytes: u64,
    counters: Counters,
    warned: AtomicBool,
    /// Held while an entry is written and room is made for it.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    rejected: AtomicU64,
    written: AtomicU64,
    evicted: AtomicU64,
}

/// Why an entry was not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("its tag is not of this installation's key: it is damaged, or came from elsewhere")]
    Tag,
    #[error("it is tagged for another component or engine")]
    Other,
    #[error("the engine does not take it: {0}")]
    Engine(String),
}

impl Cache {
    /// Take the folder, and remove what earlier processes left half written and what this engine cannot use.
    ///
    /// # Errors
    /// If the folder or the key is not ours alone, or the key cannot be written.
    pub(crate) fn open(settings: &CacheSettings, engine: &Engine) -> Result<Cache, Refused> {
        let folder = Folder::open(&settings.folder)?;
        let cache = Cache {
            engine: engine.clone(),
            engine_id: engine_id(engine),
            folder,
            key: hmac::Key::new(hmac::HMAC_SHA256, &key(settings)?),
            max_bytes: settings.max_bytes,
            counters: Counters::default(),
            warned: AtomicBool::new(false),
            writing: Mutex::new(()),
        };
        cache.tidy();
        Ok(cache)
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: value(&self.counters.hits),
            misses: value(&self.counters.misses),
            rejected: value(&self.counters.rejected),
            written: value(&self.counters.written),
            evicted: value(&self.counters.evicted),
        }
    }

    /// The component with that hash, if its code is there.
    pub(crate) fn get(&self, hash: &str) -> Option<Component> {
        let name = self.name(hash);
        match self.read(hash, &name) {
            Ok(Some(component)) => {
                count(&self.counters.hits);
                // Otherwise it would be among the first to go. On a disk that is read only nothing goes.
                let _ = self.folder.touch(&name);
                Some(component)
            }
            Ok(None) => {
                count(&self.counters.misses);
                None
            }
            Err(reason) => {
                count(&self.counters.misses);
                count(&self.counters.rejected);
                tracing::warn!(entry = name, %reason, "compiled code from the cache is not used, it is compiled anew");
                // A disk or a process that is short of something says nothing of the entry.
                if !matches!(reason, Unusable::Refused(Refused::Io(_))) {
                    self.remove(&name);
                }
                None
            }
        }
    }

    /// Keep what was compiled. Whatever goes wrong is logged and costs the next start a compilation.
    pub(crate) fn put(&self, hash: &str, component: &Component) {
        let written = component.serialize().map_err(|error| io::Error::other(format!("{error:#}")));
        if let Err(error) = written.and_then(|code| self.write(hash, &code)) {
            // The next version will meet the same, and nobody needs to be told of it twice.
            if !self.warned.swap(true, Ordering::Relaxed) {
                let folder = self.folder.path().display();
                tracing::warn!(%folder, %error, "compiled code is not kept, the next start compiles it again");
            }
        }
    }

    fn read(&self, hash: &str, name: &str) -> Result<Option<Component>, Unusable> {
        // Read once: what is checked is what is used, whatever becomes of the file meanwhile. Mapping the file, as
        // `Component::deserialize_file` does, would save a copy for a moment, but run what is written to it later.
        let Some(file) = self.folder.read(name, self.max_bytes)? else { return Ok(None) };
        let code = self.check(hash, &file)?;
        let component = deserialize(&self.engine, code).map_err(|error| Unusable::Engine(format!("{error:#}")))?;
        Ok(Some(component))
    }

    /// The code in a file, if the file is what this cache wrote for that component.
    fn check<'a>(&self, hash: &str, file: &'a [u8]) -> Result<Authentic<'a>, Unusable> {
        let (tagged, tag) = file.split_last_chunk::<TAG>().ok_or(Unusable::Tag)?;
        hmac::verify(&self.key, tagged, tag).map_err(|_| Unusable::Tag)?;
        let code = tagged.strip_prefix(self.header(hash).as_bytes()).ok_or(Unusable::Other)?;
        Ok(Authentic(code))
    }

    fn write(&self, hash: &str, code: &[u8]) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let header = self.header(hash);
        let size = (header.len() + code.len() + TAG) as u64;
        if size > self.max_bytes {
            return Err(io::Error::other(format!("it has {size} bytes, and the cache may have {}", self.max_bytes)));
        }
        let name = self.name(hash);
        for old in sweep::surplus(self.entries()?, &name, self.max_bytes - size) {
            self.evict(&old);
        }
        let mut tag = hmac::Context::with_key(&self.key);
        tag.update(header.as_bytes());
        tag.update(code);
        self.folder.write(&name, &[header.as_bytes(), code, tag.sign().as_ref()])?;
        count(&self.counters.written);
        Ok(())
    }

    /// Remove what is of no use to this process. Its like from now on belongs to it.
    fn tidy(&self) {
        let entries = self.folder.remove_half_written().and_then(|()| self.entries());
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                tracing::debug!(%error, "the cache of compiled code cannot be tidied");
                return;
            }
        };
        let ending = self.ending();
        let (own, foreign): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.name.ends_with(&ending));
        let surplus = sweep::surplus(own, "", self.max_bytes);
        for name in foreign.into_iter().map(|entry| entry.name).chain(surplus) {
            self.evict(&name);
        }
    }

    fn entries(&self) -> io::Result<Vec<sweep::Entry>> {
        let mut entries = self.folder.list()?;
        entries.retain(|entry| entry.name.ends_with(EXTENSION));
        Ok(entries)
    }

    fn evict(&self, name: &str) {
        if self.remove(name) {
            count(&self.counters.evicted);
        }
    }

    fn remove(&self, name: &str) -> bool {
        let removed = self.folder.remove(name);
        if let Err(error) = &removed {
            tracing::debug!(entry = name, %error, "an entry of the cache of compiled code cannot be removed");
        }
        removed.is_ok()
    }

    fn name(&self, hash: &str) -> String {
        format!("{hash}{}", self.ending())
    }

    fn ending(&self) -> String {
        format!("-{}{EXTENSION}", &self.engine_id[..ENGINE_DIGITS])
    }

    /// What the tag speaks of beside the code, so that no entry can stand in for another.
    fn header(&self, hash: &str) -> String {
        format!("latch compiled component {FORMAT}\nengine {}\ncomponent {hash}\n", self.engine_id)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("folder", &self.folder.path()).finish_non_exhaustive()
    }
}

/// Bytes that this installation once got from `Component::serialize`. Only [`Cache::check`] makes one.
struct Authentic<'a>(&'a [u8]);

#[expect(unsafe_code, reason = "there is no other way to load code that is compiled already")]
fn deserialize(engine: &Engine, code: Authentic<'_>) -> wasmtime::Result<Component> {
    // SAFETY: the bytes are those that `Component::serialize` gave to `Cache::put`, for their tag is made with a key that
    // only this installation has, and over the hash of their component and the id of their engine. They are in memory
    // of our own, which nobody changes between the check and this call. wasmtime itself compares version, target and
    // settings again.
    unsafe { Component::deserialize(engine, code.0) }
}

/// The key of the tags, made the first time. A file that is not ours alone, or no key, is replaced, which makes every
/// entry worthless.
fn key(settings: &CacheSettings) -> Result<[u8; KEY], Refused> {
    let parent = settings.key_file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = Folder::open(parent.unwrap_or(".".as_ref()))?;
    let name = settings.key_file.file_name().and_then(|name| name.to_str()).ok_or(Refused::Name)?;
    match folder.read(name, KEY as u64) {
        Ok(Some(found)) => match found.try_into() {
            Ok(key) => return Ok(key),
            Err(found) => {
                tracing::warn!(bytes = found.len(), "the key of the code cache is damaged, a new one is made")
            }
        },
        Ok(None) => {}
        Err(reason) => tracing::warn!(%reason, "the key of the code cache cannot be trusted, a new one is made"),
    }
    let mut key = [0; KEY];
    SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    folder.write(name, &[&key])?;
    Ok(key)
}

/// Everything that compiled code depends on: target, processor features, compiler settings, features of WebAssembly and
/// the exact version of wasmtime, all of which are in wasmtime's own hash.
fn engine_id(engine: &Engine) -> String {
    let mut digest = Digest(Context::new(&SHA256));
    engine.precompile_compatibility_hash().hash(&mut digest);
    digest.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps every bit of what is hashed, where a usual hasher would keep 64.
struct Digest(Context);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        // Whoever hashes asks `self.0`.
        0
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Of the entries' layout: header, code, tag.
const FORMAT: u32 = 1;
/// Bytes of HMAC-SHA256.
const TAG: usize = 32;
/// As long as the digest, which is what HMAC asks for.
const KEY: usize = 32;
/// Digits of the engine's id in a file's name. The whole id is under the tag.
const ENGINE_DIGITS: usize = 16;
const EXTENSION: &str = ".code";

#[cfg(test)]
mod tests;
