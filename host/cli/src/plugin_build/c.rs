//! C: bindings from the contract, Zig's C compiler from PyPI, and a component of what it made.
//!
//! The bindings are made anew for each build, so they always fit the contract. Zig brings compiler, linker and the C
//! library for WASI in one package that needs no administrator, for every system alike.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;
use wit_component::ComponentEncoder;

use super::child;
use super::foreign::Build;
use super::venv::PythonTool;

/// What decides about the component beside the plugin's own files.
pub(super) const TOOL: &[&str] = &[REQUIREMENTS, FLAGS, "wit-bindgen-c 0.60, wit-component 0.254, adapter 48"];

pub(super) fn componentize(build: &Build, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let tool = PythonTool { name: "ziglang", requirements: REQUIREMENTS, size: "100 MB", language: "C" };
    let bin = tool.install(&build.tools.join("c"), build.host_env, say)?;
    let sources = build.project.sources()?;
    let bindings = build.folder.join("bindings");
    let generated = generate(&build.wit(), &build.project.manifest.world, &bindings)?;
    say(&format!("building {} with Zig's C compiler", build.project.label()));
    let core = build.folder.join("core.wasm");
    let mut command = build.host_env.command(&bin.join("python3"), &build.project.folder);
    command.args(["-m", "ziglang", "cc"]).args(FLAGS.split(' '));
    command.env("ZIG_GLOBAL_CACHE_DIR", build.tools.join("c/cache"));
    command.env("ZIG_LOCAL_CACHE_DIR", build.folder.join("cache"));
    command.arg("-I").arg(&bindings).args(sources).args(generated).arg("-o").arg(&core);
    let ended = child::run(&mut command)?;
    if !ended.status.success() {
        bail!("the C compiler says:\n{}\nhint: the bindings are in {}", ended.stderr.trim(), bindings.display());
    }
    for warning in ended.stderr.lines() {
        say(warning);
    }
    let core = fs::read(&core).with_context(|| format!("cannot read {}", core.display()))?;
    let component = encode(&core).context("what the compiler made does not fit the contract")?;
    fs::write(build.component(), component).with_context(|| format!("cannot write {}", build.component().display()))
}

/// Writes the bindings and names those files that are to be compiled and linked.
fn generate(wit: &Path, world: &str, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit)?;
    let world = resolve.select_world(&[package], Some(world))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut compiled = Vec::new();
    for (name, content) in files.iter() {
        let file = folder.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
        if !name.ends_with(".h") {
            compiled.push(file);
        }
    }
    Ok(compiled)
}

/// A component of a core module that carries its world's type, as the bindings' object file does.
fn encode(core: &[u8]) -> anyhow::Result<Vec<u8>> {
    let encoder = ComponentEncoder::default().validate(true).module(core)?;
    encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)?.encode()
}

const REQUIREMENTS: &str = include_str!("tools/c/requirements.txt");

/// A reactor has no `main`: the host calls what it exports. Of the memory that an instance may take, a stack of Zig's
/// usual 16 MB would be a quarter.
const FLAGS: &str =
    "--target=wasm32-wasi -mexec-model=reactor -Wl,-z,stack-size=262144 -std=c17 -Os -flto -s -Wall -Wextra";
