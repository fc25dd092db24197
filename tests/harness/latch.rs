//! Running `latch`, as a service and as a command.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;

use super::process::Stream;
use super::{Process, repository};

/// From start to the line `ready`: a debug build that compiles guests and connects devices, on a busy machine.
const READY_BOUND: Duration = Duration::from_secs(60);
/// The ten seconds that `latch` may take to drain, and some.
const STOP_BOUND: Duration = Duration::from_secs(20);
/// A command that asks a running hub; the longest wait for a device is among them.
const COMMAND_BOUND: Duration = Duration::from_secs(60);

/// Lets a hub take whatever ports are free, so that tests run beside each other.
pub(crate) const FREE_PORTS: &[&str] = &["--https", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"];

/// `latch up`, `latch hub` or `latch run`, ready. Killed when dropped.
pub(crate) struct Latch {
    process: Process,
    data: PathBuf,
    ready: String,
}

impl Latch {
    /// Starts `latch ARGS --data DATA` and waits until it says that it is ready.
    pub(crate) fn start(data: &Path, args: &[&str]) -> Latch {
        let process = Process::spawn("latch", &mut latch_command(data, args));
        let ready = process.wait_for_line("ready", READY_BOUND);
        Latch { process, data: data.to_owned(), ready }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The line `ready ...`.
    pub(crate) fn ready(&self) -> &str {
        &self.ready
    }

    /// The options with which another hub takes the ports of this one.
    pub(crate) fn same_ports(&self) -> Vec<String> {
        let address = |name: &str| {
            let mut fields = self.ready.split_whitespace();
            let found = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name} in `{}`", self.ready)).to_owned()
        };
        vec!["--https".to_owned(), address("https"), "--mqtt".to_owned(), address("mqtt")]
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has said so far, on stdout and (marked) on stderr.
    pub(crate) fn transcript(&self) -> String {
        self.process.transcript()
    }

    /// `kill -9`, as a power cut or the out-of-memory killer does it.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }

    /// SIGTERM, and its exit.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait(STOP_BOUND)
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `latch ARGS --data DATA` to its end.
pub(crate) fn latch(data: &Path, args: &[&str]) -> Outcome {
    outcome(&mut latch_command(data, args))
}

/// Runs a command to its end.
pub(crate) fn outcome(command: &mut Command) -> Outcome {
    let mut process = Process::spawn("latch", command);
    let code = process.wait(COMMAND_BOUND).code();
    Outcome { code, stdout: process.said(Stream::Stdout), stderr: process.said(Stream::Stderr) }
}

/// Like [`latch`], for a command that must succeed; gives its stdout.
pub(crate) fn latch_ok(data: &Path, args: &[&str]) -> String {
    let outcome = latch(data, args);
    assert_eq!(outcome.code, Some(0), "latch {args:?}: {outcome:#?}");
    outcome.stdout
}

/// Like [`latch_ok`], with `--json`, parsed; of a command that prints as it goes on, the last that it printed.
pub(crate) fn latch_json(data: &Path, args: &[&str]) -> Value {
    let stdout = latch_ok(data, &[args, &["--json"]].concat());
    let printed: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&stdout).into_iter().collect();
    let printed = printed.unwrap_or_else(|error| panic!("latch {args:?} printed no JSON: {error}\n{stdout}"));
    printed.into_iter().last().unwrap_or_else(|| panic!("latch {args:?} printed nothing"))
}

/// `latch ARGS --data DATA`, free of what the user's environment may say about a hub.
pub(crate) fn latch_command(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latch"));
    command.args(args).arg("--data").arg(data).current_dir(repository()).env("NO_COLOR", "1");
    for variable in
        ["LATCH_HUB", "LATCH_CA", "IOTHUB_CONNECTION_STRING", "LATCH_JOB_WEBHOOK", "LATCH_JOB_WEBHOOK_SECRET"]
    {
        command.env_remove(variable);
    }
    command
}
