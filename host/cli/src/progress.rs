//! Progress of a command's own work as bars on stderr, where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over so many devices.
pub(crate) fn count_bar(prefix: &'static str, length: u64) -> ProgressBar {
    with_template(ProgressBar::new(length), "{prefix} [{bar:40}] {pos}/{len} devices, {elapsed}, eta {eta}", prefix)
}

/// A bar over the bytes of a file, if it is known how many they are.
pub(crate) fn byte_bar(prefix: &'static str, length: Option<u64>) -> ProgressBar {
    match length {
        Some(length) => {
            let template = "{prefix} [{bar:40}] {bytes}/{total_bytes}{msg}, {elapsed}, eta {eta}";
            with_template(ProgressBar::new(length), template, prefix)
        }
        None => with_template(ProgressBar::no_length(), "{prefix} {bytes}{msg}, {elapsed}", prefix),
    }
}

fn with_template(bar: ProgressBar, template: &str, prefix: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    bar.with_style(style.progress_chars("=> ")).with_prefix(prefix)
}
