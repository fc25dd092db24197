//! `latch configuration`, as it is typed.

use std::path::PathBuf;

use clap::Subcommand;
use iothub_protocol::id::ConfigurationId;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigurationCommand {
    /// List configurations, and how many devices each targets and is applied to
    List,
    /// Show a configuration with what was counted for it
    Show {
        /// The configuration's id
        id: ConfigurationId,
    },
    /// Create a configuration from a file in Azure's form
    #[command(after_help = "The file, for example:
  {
    \"id\": \"chiller\",
    \"priority\": 10,
    \"targetCondition\": \"tags.site = 'A'\",
    \"content\": {\"deviceContent\": {\"properties.desired.chiller\": {\"temperature\": 66}}},
    \"metrics\": {\"queries\": {\"cold\": \"SELECT deviceId FROM devices WHERE properties.reported.cold = true\"}}
  }")]
    Create {
        /// The file, JSON
        file: PathBuf,
    },
    /// Delete a configuration; devices keep what it has set, unless another one targets them
    Delete {
        /// The configuration's id
        id: ConfigurationId,
    },
}
