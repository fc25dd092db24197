//! Running one child to its end, within a time limit.

use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

/// How a child ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// What it printed, if it succeeded.
    pub(super) fn success(self) -> Option<String> {
        self.status.success().then_some(self.stdout)
    }
}

/// Runs `command` to its end. Nothing comes from standard input; what it prints is collected.
pub(super) fn run(command: &mut Command) -> anyhow::Result<Ended> {
    let program = command.get_program().display().to_string();
    let running = Running::start(command).with_context(|| format!("cannot run {program}"))?;
    running.end().with_context(|| format!("{program} did not end properly"))
}

/// Like [`run`], but kills the child after `limit` and then returns `None`.
pub(super) fn run_within(limit: Duration, command: &mut Command) -> anyhow::Result<Option<Ended>> {
    let program = command.get_program().display().to_string();
    let mut running = Running::start(command).with_context(|| format!("cannot run {program}"))?;
    if running.closes_its_output_within(limit) {
        return running.end().map(Some).with_context(|| format!("{program} did not end properly"));
    }
    running.child.kill().with_context(|| format!("cannot end {program}"))?;
    running.child.wait().with_context(|| format!("cannot end {program}"))?;
    // The readers are left to themselves: a grandchild may hold the pipes open.
    Ok(None)
}

struct Running {
    child: std::process::Child,
    stdout: JoinHandle<io::Result<Vec<u8>>>,
    stderr: JoinHandle<io::Result<Vec<u8>>>,
    readers: mpsc::Receiver<()>,
}

impl Running {
    fn start(command: &mut Command) -> io::Result<Running> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (reader, readers) = mpsc::channel();
        let stdout = collect(child.stdout.take(), reader.clone());
        let stderr = collect(child.stderr.take(), reader);
        Ok(Running { child, stdout, stderr, readers })
    }

    /// The readers never send; the channel closes when both have seen the end of what they read.
    fn closes_its_output_within(&self, limit: Duration) -> bool {
        self.readers.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
    }

    fn end(mut self) -> io::Result<Ended> {
        let stdout = text(self.stdout)?;
        let stderr = text(self.stderr)?;
        Ok(Ended { status: self.child.wait()?, stdout, stderr })
    }
}

fn collect(source: Option<impl Read + Send + 'static>, reader: Sender<()>) -> JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut collected = Vec::new();
        let outcome = source.map_or(Ok(0), |mut source| source.read_to_end(&mut collected));
        drop(reader);
        outcome.map(|_| collected)
    })
}

fn text(reader: JoinHandle<io::Result<Vec<u8>>>) -> io::Result<String> {
    let collected = reader.join().map_err(|_| io::Error::other("its output was not read"))??;
    Ok(String::from_utf8_lossy(&collected).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_outputs_and_the_status_are_kept() {
        let ended = run(&mut shell("echo out; echo err >&2; exit 3")).unwrap();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.success(), None);
    }

    #[test]
    fn a_child_that_takes_too_long_is_ended() {
        // `exec`, so that the killed process is the one that holds the pipes.
        assert!(run_within(Duration::from_millis(50), &mut shell("exec sleep 600")).unwrap().is_none());
        assert!(run_within(Duration::from_secs(60), &mut shell("true")).unwrap().is_some());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("/nowhere/at-all")).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("cannot run /nowhere/at-all"));
    }
}
