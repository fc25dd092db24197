//! Microsoft's SDKs: installed once into the target folder, exactly as the lock files say, and run from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{self, Process};

/// Downloads included.
const INSTALL_BOUND: Duration = Duration::from_secs(600);
/// From the start of a script to its end, or to the line that is waited for.
pub(crate) const SCRIPT_BOUND: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Sdk {
    /// azure-iot-device and azure-iothub of npm.
    Node,
    /// azure-iot-device and azure-iot-hub of PyPI.
    Python,
}

impl Sdk {
    /// Installs what the lock file names, unless it is there already.
    pub(crate) fn install(self) {
        let _lock = harness::lock(&format!("interop/{}.lock", self.name()));
        let wanted = self.files().map(|file| read(&self.scripts().join(file)));
        let stamp = self.home().join("installed");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted.concat()) {
            return;
        }
        // A left-over of another version, or of an installation that broke off.
        drop(fs::remove_dir_all(self.home()));
        fs::create_dir_all(self.home()).expect("the target folder can be written");
        for (file, text) in self.files().into_iter().zip(&wanted) {
            fs::write(self.home().join(file), text).expect("the target folder can be written");
        }
        match self {
            Sdk::Node => self.install_by("npm", &["ci", "--ignore-scripts", "--no-audit", "--no-fund"]),
            Sdk::Python => {
                self.install_by("python3", &["-m", "venv", "venv"]);
                self.install_by("venv/bin/python", &["-m", "pip", "install", "--requirement", "requirements.txt"]);
            }
        }
        fs::write(&stamp, wanted.concat()).expect("the target folder can be written");
    }

    /// Starts a script against the hub of `data`; it may run `latch`, for what the SDKs do by AMQP only.
    pub(crate) fn start(self, script: &str, data: &Path) -> Process {
        let ca = data.join("ca.pem");
        let mut command = match self {
            Sdk::Node => {
                let mut command = Command::new("node");
                command.env("NODE_PATH", self.home().join("node_modules")).env("NODE_EXTRA_CA_CERTS", &ca);
                command
            }
            Sdk::Python => {
                let mut command = Command::new(self.home().join("venv/bin/python"));
                command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
                command.env("REQUESTS_CA_BUNDLE", &ca);
                command
            }
        };
        // A proxy for the outside would swallow what is meant for the hub.
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(variable);
        }
        command.arg(self.scripts().join(script)).env("LATCH_DATA", data).env("LATCH", env!("CARGO_BIN_EXE_latch"));
        Process::spawn(script, &mut command)
    }

    fn name(self) -> &'static str {
        match self {
            Sdk::Node => "node",
            Sdk::Python => "python",
        }
    }

    /// What decides which packages are installed.
    fn files(self) -> [&'static str; 2] {
        match self {
            Sdk::Node => ["package.json", "package-lock.json"],
            Sdk::Python => ["requirements.in", "requirements.txt"],
        }
    }

    fn scripts(self) -> PathBuf {
        harness::repository().join("tests/interop").join(self.name())
    }

    fn home(self) -> PathBuf {
        harness::target().join("interop").join(self.name())
    }

    fn install_by(self, program: &str, arguments: &[&str]) {
        let home = self.home();
        // A path is meant within the folder; a bare name is looked up.
        let program = if program.contains('/') { home.join(program) } else { PathBuf::from(program) };
        let mut command = Command::new(&program);
        let name = format!("`{} {}`", program.display(), arguments.join(" "));
        Process::spawn(&name, command.args(arguments).current_dir(&home)).succeed(INSTALL_BOUND);
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
