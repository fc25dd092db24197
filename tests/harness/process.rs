//! A child process whose output is read as it comes and kept for the day something fails.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::poll;

/// How long what is already written may take to be read, once the process has ended.
const LAST_LINES: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

type Transcript = Arc<Mutex<Vec<(Stream, String)>>>;

/// A running child. Killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    transcript: Transcript,
}

impl Process {
    /// Starts `command` under a name for messages.
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} did not start: {error}"));
        let stdin = child.stdin.take();
        let transcript = Transcript::default();
        let (lines, stdout) = mpsc::channel();
        if let Some(pipe) = child.stdout.take() {
            follow(pipe, Stream::Stdout, Arc::clone(&transcript), Some(lines));
        }
        if let Some(pipe) = child.stderr.take() {
            follow(pipe, Stream::Stderr, Arc::clone(&transcript), None);
        }
        Process { name: name.to_owned(), child, stdin, stdout, transcript }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far, for people: what went to stderr is marked by `!`.
    pub(crate) fn transcript(&self) -> String {
        let mark = |stream| if stream == Stream::Stderr { "! " } else { "" };
        let transcript = self.transcript.lock().expect("no reader panics");
        transcript.iter().map(|(stream, line)| format!("{}{line}\n", mark(*stream))).collect()
    }

    /// What it has said so far on one stream.
    pub(crate) fn said(&self, on: Stream) -> String {
        let transcript = self.transcript.lock().expect("no reader panics");
        transcript.iter().filter(|(stream, _)| *stream == on).map(|(_, line)| format!("{line}\n")).collect()
    }

    /// Waits for a line on stdout that begins with `prefix` and gives it back.
    pub(crate) fn wait_for_line(&self, prefix: &str, bound: Duration) -> String {
        let deadline = Instant::now() + bound;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(line) if line.starts_with(prefix) => return line,
                Ok(_) => {}
                Err(_) => self.fail(&format!("no line `{prefix}` within {bound:?}, or ended before")),
            }
        }
    }

    /// Writes a line to its stdin.
    pub(crate) fn tell(&mut self, line: &str) {
        let written = self.stdin.as_mut().map(|stdin| writeln!(stdin, "{line}").and_then(|()| stdin.flush()));
        if !matches!(written, Some(Ok(()))) {
            self.fail(&format!("does not take the line `{line}`"));
        }
    }

    /// Waits for its end, whatever its status. There is nothing more to read on its stdin.
    pub(crate) fn wait(&mut self, bound: Duration) -> ExitStatus {
        self.stdin = None;
        let ended = poll(bound, || self.child.try_wait().ok().flatten());
        let Some(status) = ended else { self.fail(&format!("has not ended within {bound:?}")) };
        // The readers hold the transcript as long as something is to be read.
        poll(LAST_LINES, || (Arc::strong_count(&self.transcript) == 1).then_some(()));
        status
    }

    /// Waits for its end, which must be a success.
    pub(crate) fn succeed(&mut self, bound: Duration) {
        let status = self.wait(bound);
        if !status.success() {
            self.fail(&format!("failed: {status}"));
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Asks it to end, as a service manager does.
    pub(crate) fn terminate(&self) {
        let asked = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.pid().to_string()]).status();
        assert!(asked.is_ok_and(|status| status.success()), "{} cannot be signalled", self.name);
    }

    /// Ends the test with everything that helps to see why.
    pub(crate) fn fail(&self, why: &str) -> ! {
        panic!("{} {why}\n--- {} said:\n{}---", self.name, self.name, self.transcript());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn follow(pipe: impl Read + Send + 'static, stream: Stream, transcript: Transcript, lines: Option<Sender<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if let Ok(mut transcript) = transcript.lock() {
                transcript.push((stream, line.clone()));
            }
            if let Some(lines) = &lines {
                // Nobody listens once the test has what it waited for.
                drop(lines.send(line));
            }
        }
    });
}
