//! One device over several lives of its host.

use std::env;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::host::{DATA_VARIABLE, POINT_VARIABLE, SHARED_VARIABLE};
use crate::hub::{Hub, Kind};
use crate::steps::Point;
use crate::wire::{FromHost, Step, ToHost};

/// How long a host may be silent; only one that fails is for so long.
const SILENCE: Duration = Duration::from_secs(30);
/// Steps of one host. Ten times what the longest of these lives takes.
const MOST_STEPS: usize = 10_000;

/// How a host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Killed,
    /// As it was told to, with nothing left to do.
    Stopped,
}

pub(crate) struct Trial {
    shared: PathBuf,
    data: TempDir,
    hub: Hub,
    /// What the hosts said, one after the other, for people.
    transcript: Vec<String>,
    steps: Vec<Step>,
}

/// A host that runs; killed when dropped.
struct Host {
    child: Child,
    lines: BufReader<UnixStream>,
}

impl Trial {
    /// A device with these things to do, so many of them at once.
    pub(crate) fn new(shared: &Path, to_do: &[Kind], at_once: usize) -> Trial {
        let data = tempfile::tempdir().expect("a folder");
        let (hub, transcript, steps) = (Hub::new(to_do, at_once), Vec::new(), Vec::new());
        Trial { shared: shared.to_owned(), data, hub, transcript, steps }
    }

    /// From a start of the host to its end: at `last`, or when it has nothing left to do.
    pub(crate) fn live(&mut self, last: Option<&Point>) -> End {
        self.transcript.push(format!("--- a host starts, to end at {last:?}"));
        let mut host = Host::start(self.data.path(), &self.shared, last);
        let greeting = self.hub.connected();
        host.tell(greeting);
        let (mut taken, mut hung_up) = (0, false);
        loop {
            let line = match host.next() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(silence) => self.fail(&format!("{silence}, and the hub waits for {:?}", self.hub.waits_for())),
            };
            self.transcript.push(format!("{line:?}"));
            if hung_up && matches!(line, FromHost::Sent(_)) {
                self.fail("something is sent when there is nothing left to send");
            }
            self.steps.push(line.step());
            taken += 1;
            if taken > MOST_STEPS {
                self.fail(&format!("the host does not come to rest, and the hub waits for {:?}", self.hub.waits_for()));
            }
            match self.hub.hear(line) {
                Ok(said) => host.tell(said),
                Err(wrong) => self.fail(&wrong),
            }
            if !hung_up && self.hub.waits_for().is_none() {
                host.hang_up();
                hung_up = true;
            }
        }
        let status = host.child.wait().expect("it has ended");
        match (last, status.signal()) {
            (Some(_), Some(9)) => End::Killed,
            _ if hung_up && status.success() => End::Stopped,
            _ => self.fail(&format!("the host has ended: {status}")),
        }
    }

    pub(crate) fn steps(&self) -> impl Iterator<Item = Step> {
        self.steps.iter().cloned()
    }

    pub(crate) fn check(&self) {
        if let Err(wrong) = self.hub.check() {
            self.fail(&wrong);
        }
    }

    /// One more host, which has nothing to do but what it is asked for.
    pub(crate) fn check_that_nothing_is_left(&mut self) {
        let (repeated, entries) = (self.hub.repeated(), self.hub.entries());
        self.live(None);
        self.check();
        if self.hub.repeated() > repeated {
            self.fail("telemetry is sent again that the hub is known to have");
        }
        // The method and its two timers.
        if self.hub.entries() != entries + 3 {
            self.fail("the device has done more than it was asked for");
        }
    }

    fn fail(&self, why: &str) -> ! {
        panic!("{why}\n{}\n{}", self.transcript.join("\n"), self.hub.describe());
    }
}

impl Host {
    /// This test, run again as the host.
    fn start(data: &Path, shared: &Path, last: Option<&Point>) -> Host {
        let (hub, device) = UnixStream::pair().expect("sockets");
        hub.set_read_timeout(Some(SILENCE)).expect("a bound");
        let mut command = Command::new(env::current_exe().expect("this test"));
        command
            .args(["--ignored", "--nocapture", "--exact", "host::host"])
            .stdin(OwnedFd::from(device))
            .stdout(Stdio::null());
        command.env(DATA_VARIABLE, data).env(SHARED_VARIABLE, shared);
        if let Some(last) = last {
            command.env(POINT_VARIABLE, serde_json::to_string(last).expect("JSON"));
        }
        let child = command.spawn().expect("this test runs again");
        // With it goes this process's handle of the device's end, so that the host's end is seen.
        drop(command);
        Host { child, lines: BufReader::new(hub) }
    }

    /// The next line; none if the host has ended.
    fn next(&mut self) -> Result<Option<FromHost>, String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            // A line is written at once, and a kill comes after it.
            Ok(_) if line.ends_with('\n') => Ok(Some(serde_json::from_str(&line).expect("what the host says"))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(_) => Err(format!("the host has said nothing for {SILENCE:?}")),
        }
    }

    fn tell(&self, messages: Vec<ToHost>) {
        for message in messages {
            let line = serde_json::to_string(&message).expect("JSON") + "\n";
            // The host may be gone, and what it said before not read yet.
            drop(self.lines.get_ref().write_all(line.as_bytes()));
        }
    }

    fn hang_up(&self) {
        drop(self.lines.get_ref().shutdown(Shutdown::Write));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
