//! `latch hub index`, `backup`, `import` and `export`, as they are typed.

use std::path::PathBuf;

use clap::Subcommand;

/// What is done with the hub's store.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Declare indexes, for queries that look for values of tags or properties
    #[command(subcommand)]
    Index(IndexCommand),
    /// Copy the hub's store into a new file, while the hub runs or not
    #[command(
        after_help = "The copy holds registry, keys, twins, messages and indexes, as they are at one moment; its mode is 0600. Jobs are not in \
it. To go back to it, stop the hub, remove hub.db-wal and hub.db-shm from the data folder, and put the copy in the place of hub.db.

Example:
  latch hub backup hub-monday.db"
    )]
    Backup {
        /// The copy
        file: PathBuf,
    },
    /// Make devices and modules with their twins from a file, whether the hub runs or not
    #[command(
        after_help = "A line is a JSON object as Azure's registry exports it; only id is needed, and keys that are not there are made:
  {\"id\": \"door-0001\", \"tags\": {\"site\": \"A\"}, \"properties\": {\"desired\": {\"floor\": 3}}}
  {\"id\": \"door-0002\", \"status\": \"disabled\", \"authentication\": {\"symmetricKey\": {\"primaryKey\": \"…\", \"secondaryKey\": \"…\"}}}
  {\"id\": \"door-0001\", \"moduleId\": \"lock\"}

A line with moduleId is of a module, and comes after its device's. Lines that are wrong are told with their numbers, and the
others are imported. A hub that does not run takes them fastest.

Examples:
  latch hub import devices.jsonl
  latch hub import devices.jsonl --skip-existing"
    )]
    Import {
        /// The file; - for standard input
        file: PathBuf,
        /// Leave devices and modules alone that exist already, rather than calling their lines wrong
        #[arg(long)]
        skip_existing: bool,
    },
    /// Write all devices and modules with their twins into a new file, in the form that import reads
    #[command(
        after_help = "The lines are in order of ids, devices before modules, all as they are at one moment; the file's mode is 0600, since keys
are in it.

Examples:
  latch hub export devices.jsonl
  latch hub export - --without-keys | head"
    )]
    Export {
        /// The file; - for standard output
        file: PathBuf,
        /// Without keys: whoever imports the file gives them new ones
        #[arg(long)]
        without_keys: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum IndexCommand {
    /// Declare an index and build it
    #[command(
        after_help = "Comparing the place with a constant in WHERE uses the index: =, IN, <, <=, >, >= and STARTS_WITH, alone or joined to others by \
AND. There may be 16 indexes; each makes every change of a twin a little slower. A hub with a million devices writes nothing \
for some seconds while one is built.

Examples:
  latch hub index add tags.site
  latch hub index add properties.reported.firmware.version"
    )]
    Add {
        /// A place in twins: tags.…, properties.desired.… or properties.reported.…
        path: String,
    },
    /// List the declared indexes
    List,
    /// Remove an index
    Remove {
        /// The place that it is for
        path: String,
    },
}
