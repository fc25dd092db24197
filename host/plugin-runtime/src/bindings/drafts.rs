//! Drafts of WASI that components in the field bring along: `wasi:config` and `wasi:logging`. They are no part of what
//! the host promises, and may go when they are replaced; plugins for this host import `iothub:device/config` and `log`.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower};

use crate::guest::Guest;
use crate::output;

/// The interfaces have no WIT here: they are so small that their types say all. Each is linked under every name that it
/// has had.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for name in CONFIG {
        let mut config = linker.instance(name)?;
        config.func_wrap("get", |guest: StoreContextMut<'_, Guest>, (key,): (String,)| {
            Ok((Ok::<_, ConfigError>(guest.data().terms.config.get(&key).cloned()),))
        })?;
        config.func_wrap("get-all", |guest: StoreContextMut<'_, Guest>, (): ()| {
            Ok((Ok::<_, ConfigError>(guest.data().settings()),))
        })?;
    }
    for name in LOGGING {
        linker.instance(name)?.func_wrap("log", log)?;
    }
    Ok(())
}

/// The first is what wasmtime itself offers; the others are older.
const CONFIG: [&str; 3] =
    ["wasi:config/store@0.2.0-rc.1", "wasi:config/store@0.2.0-draft", "wasi:config/runtime@0.2.0-draft"];
const LOGGING: [&str; 2] = ["wasi:logging/logging@0.1.0-draft", "wasi:logging/logging"];

/// Why there is no setting. Here there is no such reason.
#[derive(ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "part of the type of the drafts' functions")]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made from the number that a guest gives")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

/// A line in the host's log, by the same limits as any other. `context` goes in front of it.
fn log(guest: StoreContextMut<'_, Guest>, (level, context, message): (Level, String, String)) -> wasmtime::Result<()> {
    let level = match level {
        Level::Trace => output::Level::Trace,
        Level::Debug => output::Level::Debug,
        Level::Info => output::Level::Info,
        Level::Warn => output::Level::Warn,
        Level::Error | Level::Critical => output::Level::Error,
    };
    if context.is_empty() {
        guest.data().output.line(level, &message);
    } else {
        guest.data().output.line(level, &format!("{context}: {message}"));
    }
    Ok(())
}
