//! What a guest says: log calls, standard output and standard error, as lines in the host's log.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::name::PluginName;
use crate::settings::CallLimits;

/// How loud a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// One of a guest's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standard {
    Output,
    Error,
}

/// The voice of one instance. Shared by its streams, which WASI wants to own.
#[derive(Clone)]
pub(crate) struct Output(Arc<Mutex<Lines>>);

struct Lines {
    device: String,
    plugin: PluginName,
    version: Arc<str>,
    budget: Budget,
    /// Bytes after the last line break, of standard output and of standard error.
    unfinished: [Vec<u8>; 2],
    /// The last thing that it wrote to standard error in this call: what a language's runtime says before it aborts.
    last_words: Option<String>,
}

impl Output {
    pub(crate) fn new(plugin: PluginName, version: Arc<str>, limits: CallLimits) -> Output {
        Output(Arc::new(Mutex::new(Lines {
            device: String::new(),
            plugin,
            version,
            budget: Budget::new(limits),
            unfinished: [Vec::new(), Vec::new()],
            last_words: None,
        })))
    }

    pub(crate) fn begin(&self, device: &str) {
        self.with(|lines| {
            device.clone_into(&mut lines.device);
            lines.budget.lines = 0;
            lines.last_words = None;
        });
    }

    /// Write out what has no line break yet: the call is over.
    pub(crate) fn end(&self) {
        self.with(|lines| {
            lines.finish(Standard::Output);
            lines.finish(Standard::Error);
        });
    }

    pub(crate) fn line(&self, level: Level, text: &str) {
        self.with(|lines| lines.line(level, text));
    }

    /// Where a guest trapped. Beside the budget: there is one at most.
    pub(crate) fn backtrace(&self, functions: &str) {
        self.with(|lines| {
            lines.write(Level::Warn, &format!("trapped in {}", plain(cut(functions, lines.budget.limits.log_line))))
        });
    }

    pub(crate) fn last_words(&self) -> Option<String> {
        let mut words = None;
        self.with(|lines| words.clone_from(&lines.last_words));
        words
    }

    #[cfg(test)]
    pub(crate) fn lines_said(&self) -> usize {
        let mut said = 0;
        self.with(|lines| said = lines.budget.lines);
        said
    }

    pub(crate) fn stream(&self, standard: Standard) -> Stream {
        Stream { output: self.clone(), standard }
    }

    fn with(&self, action: impl FnOnce(&mut Lines)) {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Lines {
    fn bytes(&mut self, standard: Standard, bytes: &[u8]) {
        let limit = self.budget.limits.log_line.max(1);
        for piece in bytes.split_inclusive(|&byte| byte == b'\n').flat_map(|line| line.chunks(limit)) {
            self.unfinished[standard as usize].extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.unfinished[standard as usize].len() >= limit {
                self.finish(standard);
            }
        }
    }

    fn finish(&mut self, standard: Standard) {
        let bytes = std::mem::take(&mut self.unfinished[standard as usize]);
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if bytes.is_empty() {
            return;
        }
        let level = match standard {
            Standard::Output => Level::Info,
            Standard::Error => Level::Warn,
        };
        let text = String::from_utf8_lossy(bytes);
        if standard == Standard::Error {
            if text.starts_with(PANIC_NOTE) {
                return;
            }
            let words = &text[..text.floor_char_boundary(LAST_WORDS_LIMIT)];
            self.last_words = Some(plain(Cow::Borrowed(words)).into_owned());
        }
        self.line(level, &text);
    }

    fn line(&mut self, level: Level, text: &str) {
        match self.budget.admit(text) {
            Admitted::Line(line) => self.write(level, &line),
            Admitted::Enough => {
                let limit = self.budget.limits.log_lines;
                self.write(Level::Warn, &format!("further lines of this call are dropped, after {limit}"));
            }
            Admitted::Dropped => {}
        }
    }

    fn write(&self, level: Level, line: &str) {
        let (device, plugin, version) = (&self.device, &self.plugin, &self.version);
        match level {
            Level::Trace => tracing::trace!(target: TARGET, device, %plugin, %version, "{line}"),
            Level::Debug => tracing::debug!(target: TARGET, device, %plugin, %version, "{line}"),
            Level::Info => tracing::info!(target: TARGET, device, %plugin, %version, "{line}"),
            Level::Warn => tracing::warn!(target: TARGET, device, %plugin, %version, "{line}"),
            Level::Error => tracing::error!(target: TARGET, device, %plugin, %version, "{line}"),
        }
    }
}

/// How much one call may still say.
struct Budget {
    limits: CallLimits,
    /// Those included that were dropped.
    lines: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Admitted<'a> {
    Line(Cow<'a, str>),
    /// The first line too many; say so.
    Enough,
    Dropped,
}

impl Budget {
    fn new(limits: CallLimits) -> Budget {
        Budget { limits, lines: 0 }
    }

    fn admit<'a>(&mut self, text: &'a str) -> Admitted<'a> {
        self.lines = self.lines.saturating_add(1);
        match self.lines {
            lines if lines <= self.limits.log_lines => Admitted::Line(plain(cut(text, self.limits.log_line))),
            lines if lines - 1 == self.limits.log_lines => Admitted::Enough,
            _ => Admitted::Dropped,
        }
    }
}

fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let kept = &text[..text.floor_char_boundary(limit)];
    Cow::Owned(format!("{kept}… ({} bytes cut)", text.len() - kept.len()))
}

/// Without characters that would begin a line of their own in the log, or move a terminal's cursor.
fn plain(text: Cow<'_, str>) -> Cow<'_, str> {
    if !text.contains(is_unruly) {
        return text;
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unruly(character) {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    Cow::Owned(plain)
}

fn is_unruly(character: char) -> bool {
    character.is_control() && character != '\t'
}

/// Standard output or standard error of a guest. Never blocks and never fails.
pub(crate) struct Stream {
    output: Output,
    standard: Standard,
}

impl Stream {
    fn take(&self, bytes: &[u8]) {
        self.output.with(|lines| lines.bytes(self.standard, bytes));
    }

    fn again(&self) -> Stream {
        self.output.stream(self.standard)
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.again())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.again())
    }
}

#[async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_LIMIT)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The `target` of guests' lines, so that a filter can tell them from the host's own.
const TARGET: &str = "plugin";
/// Rust ends the message of a panic with advice that nobody can follow here.
const PANIC_NOTE: &str = "note: run with `RUST_BACKTRACE=";
/// Enough for a sentence in an answer to a caller.
const LAST_WORDS_LIMIT: usize = 200;
/// What a guest may write at once without asking again; the host holds as much for a moment.
const WRITE_LIMIT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// The default.
    const LINE: usize = 4096;

    fn output() -> Output {
        Output::new(PluginName::parse("p").expect("a name"), Arc::from("1.0.0"), CallLimits::default())
    }

    #[test]
    fn a_call_says_a_hundred_lines() {
        let mut budget = Budget::new(CallLimits::default());
        for _ in 0..100 {
            assert_eq!(budget.admit("x"), Admitted::Line(Cow::Borrowed("x")));
        }
        assert_eq!(budget.admit("x"), Admitted::Enough);
        assert_eq!(budget.admit("x"), Admitted::Dropped);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = format!("{}ü!", "x".repeat(LINE - 1));
        assert_eq!(cut(&text, LINE), format!("{}… (3 bytes cut)", "x".repeat(LINE - 1)));
    }

    #[test]
    fn a_host_can_give_less() {
        let mut budget = Budget::new(CallLimits { log_line: 2, log_lines: 1, ..CallLimits::default() });
        assert_eq!(budget.admit("xyz"), Admitted::Line(Cow::Borrowed("xy… (1 bytes cut)")));
        assert_eq!((budget.admit("x"), budget.admit("x")), (Admitted::Enough, Admitted::Dropped));
    }

    #[test]
    fn a_line_cannot_forge_another() {
        assert_eq!(plain(Cow::Borrowed("a\n2026 ERROR b\u{1b}[2J")), r"a\n2026 ERROR b\u{1b}[2J");
    }

    #[test]
    fn the_last_words_are_those_before_the_panics_note() {
        let output = output();
        output
            .stream(Standard::Error)
            .take(b"\npanicked at x\nthe door is jammed\nnote: run with `RUST_BACKTRACE=1` to see\n");
        assert_eq!(output.last_words().as_deref(), Some("the door is jammed"));
        output.begin("door-0001");
        assert_eq!(output.last_words(), None);
    }

    #[test]
    fn a_stream_without_line_breaks_is_not_kept_whole() {
        let output = output();
        output.stream(Standard::Output).take(&vec![b'x'; 3 * LINE + 5]);
        output.with(|lines| {
            assert_eq!(lines.unfinished[0].len(), 5);
            assert_eq!(lines.budget.lines, 3);
        });
        output.end();
        output.with(|lines| assert_eq!((lines.unfinished[0].len(), lines.budget.lines), (0, 4)));
    }
}
