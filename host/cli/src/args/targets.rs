//! Which devices a job is for.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// Where `--help` shows them.
const TARGETS: &str = "Targets";

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct TargetArgs {
    /// The devices: a condition on twins, or '*' for all; modules by FROM devices.modules WHERE …
    #[arg(long, value_name = "CONDITION", required_unless_present = "list", help_heading = TARGETS)]
    pub(crate) query: Option<String>,
    /// Instead, the devices and modules that a file lists, or - for stdin: an id or DEVICE/MODULE a line, up to a million.
    /// Of a line with commas the first column counts; lines that begin with # do not (not for Azure's own engine)
    #[arg(long, value_name = "FILE", conflicts_with = "query", help_heading = TARGETS)]
    pub(crate) list: Option<PathBuf>,
    /// Leave out the devices for which this condition holds (not for Azure's own engine)
    #[arg(long, value_name = "CONDITION", help_heading = TARGETS)]
    pub(crate) exclude: Option<String>,
    /// Leave out the devices that a file lists, each with its modules (not for Azure's own engine)
    #[arg(long, value_name = "FILE", help_heading = TARGETS)]
    pub(crate) exclude_list: Option<PathBuf>,
    /// Keep the job until its time is over, and have devices that come to match --query by then join it, each once (not for
    /// Azure's own engine)
    #[arg(long, conflicts_with = "list", help_heading = TARGETS)]
    pub(crate) continuous: bool,
}
