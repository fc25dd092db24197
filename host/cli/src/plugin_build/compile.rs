//! Running `cargo build` and finding what it made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::child;
use super::target_folder::TargetFolder;
use super::toolchain::{TARGET, Toolchain};
use super::workspace::{Package, Workspace};

/// One run of cargo.
pub(super) struct Compile<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) toolchain: &'a Toolchain,
    pub(super) packages: &'a [&'a Package],
    /// Features of the packages, beyond their defaults.
    pub(super) features: &'a [String],
    pub(super) target_folder: TargetFolder<'a>,
}

/// The components that cargo made or found fresh, by package id.
pub(super) struct Artifacts(BTreeMap<String, PathBuf>);

impl Compile<'_> {
    pub(super) fn run(&self, say: &mut dyn FnMut(&str)) -> anyhow::Result<Artifacts> {
        let target_folder = self.target_folder.prepare()?;
        say(&self.announcement(target_folder.is_new));
        let mut command = self.command(&target_folder.path);
        let ended = child::run(&mut command)?;
        if !ended.status.success() {
            let hint = self.hint(&ended.stderr, &command);
            bail!("cargo could not build {}\n{}\nhint: {hint}", self.names(), ended.stderr.trim());
        }
        for warning in ended.stderr.lines() {
            say(warning);
        }
        Artifacts::parse(&ended.stdout).context("cargo's list of what it made")
    }

    fn command(&self, target_folder: &Path) -> Command {
        let mut command = self.toolchain.cargo(&self.workspace.root);
        command.env("CARGO_TARGET_DIR", target_folder);
        if !self.workspace.has_release_profile {
            command.envs(RELEASE_PROFILE);
        }
        command.args(["build", "--release", "--quiet", "--message-format=json-render-diagnostics"]);
        command.args(["--target", TARGET]).args(self.toolchain.arguments);
        if self.workspace.root.join("Cargo.lock").exists() {
            command.arg("--locked");
        }
        for package in self.packages {
            command.args(["--package", &package.name]);
            for feature in self.features {
                command.args(["--features", &format!("{}/{feature}", package.name)]);
            }
        }
        command
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.packages.iter().map(|package| package.name.as_str()).collect();
        names.join(", ")
    }

    fn announcement(&self, first_time: bool) -> String {
        let features = match self.features {
            [] => String::new(),
            features => format!(" with {}", features.join(", ")),
        };
        let patience = match (first_time, self.toolchain.arguments) {
            (false, _) => "",
            (true, []) => " (the first time takes a minute)",
            (true, _) => " (the first time takes a few minutes: it compiles the standard library, too)",
        };
        format!("building {}{features}{patience}", self.names())
    }

    fn hint(&self, said: &str, command: &Command) -> String {
        if said.contains("--locked") {
            return format!(
                "bring Cargo.lock up to date: cargo update --workspace, in {}",
                self.workspace.root.display()
            );
        }
        if lacks_sockets(said) {
            return "Debian's packages have no sockets for guests; build with rustup's target: rustup target add \
                    wasm32-wasip2, and latch plugin build --toolchain rustup"
                .to_owned();
        }
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        format!("the command was: cargo {}, in {}", arguments.join(" "), self.workspace.root.display())
    }
}

/// Whether the linker misses what the C library for WASI 0.1 does not have.
fn lacks_sockets(said: &str) -> bool {
    ["socket", "connect", "getaddrinfo"]
        .iter()
        .any(|name| said.lines().any(|line| line.trim_end().ends_with(&format!("undefined symbol: {name}"))))
}

impl Artifacts {
    /// Reads cargo's messages, one JSON document a line.
    fn parse(messages: &str) -> anyhow::Result<Artifacts> {
        #[derive(Deserialize)]
        #[serde(tag = "reason", rename_all = "kebab-case")]
        enum Message {
            CompilerArtifact {
                package_id: String,
                filenames: Vec<PathBuf>,
            },
            #[serde(other)]
            Other,
        }

        let mut artifacts = BTreeMap::new();
        for line in messages.lines() {
            if let Message::CompilerArtifact { package_id, filenames } = serde_json::from_str(line)? {
                let component = filenames.into_iter().find(|file| file.extension().is_some_and(|end| end == "wasm"));
                artifacts.extend(component.map(|component| (package_id, component)));
            }
        }
        Ok(Artifacts(artifacts))
    }

    pub(super) fn of(&self, package: &Package) -> anyhow::Result<&Path> {
        let artifact = self.0.get(&package.id).map(PathBuf::as_path);
        artifact.with_context(|| format!("cargo made no component of package {}", package.name))
    }
}

/// For a workspace that has no `[profile.release]`: cargo's own default makes a component twice the size, which a host
/// then takes twice as long to compile.
const RELEASE_PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "true"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","package_id":"serde","filenames":["/t/libserde.rlib"],"fresh":true}"#,
            "\n",
            r#"{"reason":"build-script-executed","package_id":"serde"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"door","filenames":["/t/door.d","/t/door.wasm"]}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        let artifacts = Artifacts::parse(messages).unwrap().0;
        assert_eq!(artifacts.into_iter().collect::<Vec<_>>(), [("door".to_owned(), PathBuf::from("/t/door.wasm"))]);
    }

    #[test]
    fn missing_sockets_are_known_by_what_the_linker_says() {
        let said = "  = note: wasm-ld: error: door.o: undefined symbol: getaddrinfo\n          wasm-ld: error: …\n";
        assert!(lacks_sockets(said));
        assert!(!lacks_sockets("wasm-ld: error: door.o: undefined symbol: socket_of_mine\n"));
    }
}
