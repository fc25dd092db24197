//! A few lines on a terminal, drawn anew where they are.

use std::io::{self, IsTerminal as _, Write as _};

use console::{Style, Term, measure_text_width, truncate_str};

use crate::context::Context;

/// Where a terminal does not say how wide it is.
const WIDTH: usize = 80;

/// What is drawn on stderr.
#[derive(Default)]
pub(super) struct Screen {
    /// How wide each line is that is there now.
    drawn: Vec<usize>,
    text: String,
}

impl Screen {
    /// `None` where stderr is no terminal, or one that cannot move back.
    pub(super) fn new() -> Option<Screen> {
        let is_dumb = Context::variable("TERM").is_none_or(|name| name.is_empty() || name == "dumb");
        (io::stderr().is_terminal() && !is_dumb).then(Screen::default)
    }

    /// Columns for a line. One is left free, so that what the terminal shows of a key does not begin a line of its own.
    pub(super) fn width() -> usize {
        Screen::columns().saturating_sub(1).max(1)
    }

    fn columns() -> usize {
        Term::stderr().size_checked().map_or(WIDTH, |(_, columns)| usize::from(columns)).max(1)
    }

    /// Show these lines instead of what is there, each cut where the terminal ends.
    pub(super) fn show(&mut self, lines: &[(Style, String)]) {
        let width = Screen::width();
        let cut: Vec<_> = lines.iter().map(|(style, line)| (style, truncate_str(line, width, "…"))).collect();
        let text: Vec<_> = cut.iter().map(|(style, line)| style.apply_to(line).to_string()).collect();
        let text = text.join("\x1b[K\n");
        if text != self.text {
            write(&format!("{}{text}\x1b[J", home(&self.drawn, Screen::columns())));
            self.text = text;
            self.drawn = cut.iter().map(|(_, line)| measure_text_width(line)).collect();
        }
    }

    /// Leave nothing behind.
    pub(super) fn clear(&mut self) {
        if !self.drawn.is_empty() {
            write(&format!("{}\x1b[J", home(&self.drawn, Screen::columns())));
            *self = Screen::default();
        }
    }
}

/// Moves to where the first of these lines begins, from the end of the last. Those that were drawn when the terminal was
/// wider take several rows now.
fn home(drawn: &[usize], columns: usize) -> String {
    let rows: usize = drawn.iter().map(|width| width.div_ceil(columns).max(1)).sum();
    match rows.saturating_sub(1) {
        0 => "\r".to_owned(),
        up => format!("\r\x1b[{up}A"),
    }
}

fn write(text: &str) {
    // Nothing can be done for a closed stderr.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_home_is_as_long_as_what_was_drawn() {
        for (drawn, columns, expected) in
            [(&[][..], 80, "\r"), (&[79], 80, "\r"), (&[79, 0, 5], 80, "\r\x1b[2A"), (&[79, 0, 5], 40, "\r\x1b[3A")]
        {
            assert_eq!(home(drawn, columns), expected, "{drawn:?}");
        }
    }
}
