//! Exit codes: few, and documented in `latch --help`.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use iothub_service::ServiceError;

/// What `latch --help` ends with.
pub(crate) const HELP: &str = "Exit codes:
  0  done
  1  refused or failed; the message says why
  2  wrong usage
  3  the hub or the running latch could not be reached
  4  what was asked for ran, and ended badly: failed devices, a wrong plugin or configuration";

/// Something ran to its end, and the end is bad. The output tells of it already.
#[derive(Debug)]
pub(crate) struct EndedBadly(pub(crate) String);

impl fmt::Display for EndedBadly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EndedBadly {}

/// Nobody answers.
#[derive(Debug)]
pub(crate) struct Unreachable(pub(crate) String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// Print an error to stderr, and find its code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Nothing can be done for a closed stderr.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    let unreachable = error.chain().any(|cause| {
        cause.is::<Unreachable>()
            || matches!(cause.downcast_ref::<ServiceError>(), Some(ServiceError::Transport { .. }))
    });
    match (unreachable, error.chain().any(|cause| cause.is::<EndedBadly>())) {
        (true, _) => 3,
        (_, true) => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_deep_inside_decides() {
        let plain = anyhow::anyhow!("no");
        let bad = anyhow::Error::new(EndedBadly("2 of 5 devices failed".into())).context("job j1");
        let gone = anyhow::Error::new(Unreachable("no latch runs there".into())).context("events");
        assert_eq!((code(&plain), code(&bad), code(&gone)), (1, 4, 3));
    }
}
