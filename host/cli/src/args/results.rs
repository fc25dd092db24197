//! `latch job results` and `latch job audit`, as they are typed.

use clap::{Args as ClapArgs, ValueEnum};
use iothub_protocol::id::JobId;
use iothub_protocol::job::DeviceJobStatus;
use iothub_protocol::job::policy::FailureClass;

use super::policy;

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Rows are printed as they come from the hub; a million of them take no more memory than a thousand.
In CSV, a text that a spreadsheet would take for a formula has an apostrophe before it; jsonl has every text as it is.

Examples:
  latch job results lock-all --failed
  latch job results lock-all --class timeout,offline --format csv > failed.csv
  latch job results lock-all --attempts --format jsonl | jq 'select(.late)'"
)]
pub(crate) struct ResultsArgs {
    /// The job's id
    pub(crate) id: JobId,
    /// Only what failed
    #[arg(long, conflicts_with = "status")]
    pub(crate) failed: bool,
    /// Only what has this status
    #[arg(long, value_name = "STATUS", value_parser = status, conflicts_with = "class")]
    pub(crate) status: Option<DeviceJobStatus>,
    /// Only what failed in one of these ways, such as timeout,offline
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = policy::class)]
    pub(crate) class: Vec<FailureClass>,
    /// Every attempt at each device, with answers that came when it was over; of jobs of the embedded hub
    #[arg(long)]
    pub(crate) attempts: bool,
    /// How to print them [default: table, and with --json: json]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<ResultsFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResultsFormat {
    /// Columns for people
    Table,
    /// With a heading, as RFC 4180 has it
    Csv,
    /// One array
    Json,
    /// An object a line
    Jsonl,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Each entry holds the hash of the one before and is signed with audit.key of the hub's data folder. Note the head
that --verify shows somewhere else: with --head, a later check also tells when the whole trail was put back or begun anew.

Examples:
  latch job audit lock-all
  latch job audit --verify --head 12:5f1c…"
)]
pub(crate) struct AuditArgs {
    /// Only entries of this job
    #[arg(conflicts_with = "verify")]
    pub(crate) id: Option<JobId>,
    /// Check the whole trail, and say where it does not hold; then exit with 4
    #[arg(long)]
    pub(crate) verify: bool,
    /// The head that an earlier check has shown
    #[arg(long, value_name = "NUMBER:HASH", requires = "verify")]
    pub(crate) head: Option<String>,
}

fn status(text: &str) -> Result<DeviceJobStatus, String> {
    DeviceJobStatus::by_name(text).ok_or_else(|| {
        let names = DeviceJobStatus::ALL.map(DeviceJobStatus::name).join(", ");
        format!("the statuses are {names}")
    })
}
