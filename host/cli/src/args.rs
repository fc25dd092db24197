//! The command line as it is typed.

mod configuration;
mod events;
mod host;
mod hub_command;
mod hub_store;
mod identity;
mod message;
mod policy;
mod recurrence;
mod rehearse;
mod results;
mod targets;
mod webhook;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use iothub_protocol::address::Address;
use iothub_protocol::id::{JobId, MethodName, TemplateName};
use iothub_protocol::job::policy::FailureClass;

use crate::exit;

pub(crate) use configuration::ConfigurationCommand;
pub(crate) use events::EventsArgs;
pub(crate) use host::{HostArgs, HubArgs, ListenArgs, RunArgs, UpArgs};
pub(crate) use hub_command::{CaCommand, HubCommand, TokenArgs};
pub(crate) use hub_store::{IndexCommand, StoreCommand};
pub(crate) use identity::{DeviceCommand, IdentityArgs, ModuleCommand};
pub(crate) use message::{MessageCommand, SendArgs};
#[cfg(test)]
pub(crate) use policy::Retries;
pub(crate) use policy::{AnswerArgs, End, PolicyArgs, ReportArgs, RolloutArgs, Stages, SuccessArgs};
pub(crate) use recurrence::RecurrenceArgs;
pub(crate) use rehearse::{BadDayArgs, RehearseCommand};
pub(crate) use results::{AuditArgs, ResultsArgs, ResultsFormat};
pub(crate) use targets::TargetArgs;
pub(crate) use webhook::WebhookArgs;

/// Where `--help` shows what every command has.
const COMMON: &str = "Common options";

/// Runs the behaviour of a fleet of Azure IoT Hub devices as sandboxed WebAssembly plugins, and schedules jobs over them.
#[derive(Debug, Parser)]
#[command(name = "latch", version, after_help = exit::HELP, propagate_version = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GlobalArgs {
    /// Print data as JSON
    #[arg(long, global = true, help_heading = COMMON)]
    pub(crate) json: bool,
    /// Folder that a hub or host keeps its data in, and that clients find it by
    #[arg(long, global = true, help_heading = COMMON, value_name = "DIR", default_value = ".latch")]
    pub(crate) data: PathBuf,
    /// File with the hub's service connection string; else LATCH_HUB or IOTHUB_CONNECTION_STRING, else the data folder's
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILE")]
    pub(crate) hub: Option<PathBuf>,
    /// PEM file with the hub's certificate authority; else LATCH_CA, else the data folder's, else the system's
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Log more: -v what happens, -vv everything (or set LATCH_LOG, such as LATCH_LOG=device_actors=debug)
    #[arg(short, long, global = true, help_heading = COMMON, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// See it all in seconds: a hub, a fleet of doors, jobs through WebAssembly, a live swap
    Demo(DemoArgs),
    /// Run the embedded hub and a host with devices and plugins, in one process
    #[command(after_help = "Examples:
  latch up --devices 100 --plugins target/plugins
  latch up --devices 10 --plugins target/plugins --https 127.0.0.1:8443 --mqtt 127.0.0.1:8884
  latch up --config fleet/latch.toml")]
    Up(UpArgs),
    /// Run the embedded hub alone, for devices and back ends of your own; or see to one that runs
    #[command(args_conflicts_with_subcommands = true)]
    Hub(HubArgs),
    /// Run the host alone, against Azure IoT Hub or any other hub
    #[command(after_help = "Examples:
  latch run --connections devices.txt --plugins target/plugins
  latch run --connections .latch/devices --plugins target/plugins --ca .latch/ca.pem --data .latch-host
  latch run --config fleet/latch.toml
  LATCH_HUB=\"$(cat azure.connstr)\" latch run --jobs --tier S1

With --jobs it runs jobs on the hub of --hub or LATCH_HUB, over the hub's service API: stages, rates, retries, waiting and \
whatever else Azure's own engine does not have. `latch job` with the same data folder reaches it. Devices of its own it \
needs none then.")]
    Run(RunArgs),
    /// Create, list, show and delete devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Create, list, show and delete modules of devices
    #[command(subcommand)]
    Module(ModuleCommand),
    /// Show and update twins
    #[command(subcommand)]
    Twin(TwinCommand),
    /// Invoke a direct method on one device or module
    #[command(after_help = "Examples:
  latch method door-0001 lockDoor --payload '{\"by\": \"ann\"}'
  latch method door-0001/lock turn")]
    Method(MethodArgs),
    /// Send cloud-to-device messages, and see what becomes of them
    #[command(subcommand)]
    Message(MessageCommand),
    /// Query twins or job results in IoT Hub's query language
    #[command(after_help = "Examples:
  latch query \"SELECT deviceId, properties.reported.door FROM devices WHERE tags.site = 'A'\"
  latch query \"SELECT tags.site AS site, COUNT() AS n FROM devices GROUP BY tags.site\"
  latch query \"SELECT * FROM devices.jobs WHERE jobId = 'j1' AND status = 'failed'\"")]
    Query(QueryArgs),
    /// Schedule jobs over many devices, and follow them
    Job(Box<JobArgs>),
    /// Show and follow what happens on the embedded hub: telemetry, changes of twins, messages, devices coming and going
    #[command(after_help = events::HELP)]
    Events(EventsArgs),
    /// Manage devices automatically: desired properties for all that a condition targets, now and later
    #[command(subcommand)]
    Configuration(ConfigurationCommand),
    /// Check a fleet's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Start, build, test, check, list, swap, pin and roll back plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DemoArgs {
    /// Number of doors
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub(crate) devices: u32,
    /// Folder with the plugins' source
    #[arg(long, value_name = "DIR", default_value = "plugins")]
    pub(crate) source: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TwinCommand {
    /// Show the twin of a device or a module
    Show {
        /// The device's id, or a module as DEVICE/MODULE
        #[arg(value_name = "DEVICE[/MODULE]")]
        id: Address,
    },
    /// Merge into tags or desired properties of a device or a module; null removes
    #[command(after_help = "Examples:
  latch twin update door-0001 --desired '{\"building\": \"43\", \"floor\": 3}'
  latch twin update door-0001/lock --desired '{\"bolts\": 2}'")]
    Update {
        /// The device's id, or a module as DEVICE/MODULE
        #[arg(value_name = "DEVICE[/MODULE]")]
        id: Address,
        #[command(flatten)]
        change: TwinChange,
        /// Only if the twin still has this etag
        #[arg(long)]
        etag: Option<String>,
    },
}

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = true)]
pub(crate) struct TwinChange {
    /// Desired properties, a JSON object
    #[arg(long, value_name = "JSON")]
    pub(crate) desired: Option<String>,
    /// Tags, a JSON object
    #[arg(long, value_name = "JSON")]
    pub(crate) tags: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MethodArgs {
    /// The device's id, or a module as DEVICE/MODULE
    #[arg(value_name = "DEVICE[/MODULE]")]
    pub(crate) device: Address,
    /// The method's name
    pub(crate) name: MethodName,
    #[command(flatten)]
    pub(crate) call: CallArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CallArgs {
    /// JSON for the method [default: null]
    #[arg(long, value_name = "JSON")]
    pub(crate) payload: Option<String>,
    /// Seconds to wait for the answer, 5 to 300 [default: 30]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(5..=300))]
    pub(crate) response_timeout: Option<u32>,
    /// Seconds to wait for an offline device to connect, 0 to 300 [default: 0]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=300))]
    pub(crate) connect_timeout: Option<u32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct QueryArgs {
    /// SELECT … FROM devices | devices.modules | devices.jobs …
    pub(crate) query: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct JobArgs {
    /// Which engine has the job, or is to have it [default: whichever has it, or can run it]
    #[arg(long, global = true, value_enum, value_name = "ENGINE", default_value_t, hide_default_value = true)]
    pub(crate) engine: EngineChoice,
    #[command(subcommand)]
    pub(crate) command: JobCommand,
}

/// Which engine runs a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum EngineChoice {
    /// The hub's own if it can run the job, else that of a `latch run --jobs` on the data folder
    #[default]
    Auto,
    /// The hub's own; Azure's runs jobs without policies and further steps
    Azure,
    /// That of a `latch run --jobs` on the data folder, or of an embedded hub
    Latch,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Schedule a direct method
    #[command(after_help = "Examples:
  latch job method lockDoor --query \"tags.site = 'A'\" --wait
  latch job method lockDoor --query '*' --stage 5,100 --rate 20 --abort-failures 10% --wait
  latch job method lockDoor --query '*' --retry timeout,fault:3 --wait-offline 1h --skip-offline
  latch job method lockDoor --list doors.csv --exclude \"tags.pilot = true\" --wait
  latch job method lockDoor --query '*' --id nightly --cron '0 22 * * *' --time-zone Europe/Berlin")]
    Method {
        /// The method's name
        name: MethodName,
        #[command(flatten)]
        call: CallArgs,
        #[command(flatten)]
        schedule: ScheduleArgs,
        #[command(flatten)]
        policy: PolicyArgs,
        #[command(flatten)]
        answer: AnswerArgs,
    },
    /// Schedule an update of desired properties or tags
    #[command(after_help = "Examples:
  latch job twin --desired '{\"building\": \"43\", \"floor\": 3}' --query '*' --wait
  latch job twin --desired '{\"latch\": {\"plugins\": {\"lock-door\": \"2.0.0\"}}}' --query '*' \\
    --stage 5,50,100 --success-by plugin:lock-door --soak 1m --wait

The last one is what `latch plugin rollout lock-door 2.0.0 --query '*' --soak 1m --wait` does.")]
    Twin {
        #[command(flatten)]
        change: TwinChange,
        #[command(flatten)]
        schedule: ScheduleArgs,
        #[command(flatten)]
        policy: PolicyArgs,
        #[command(flatten)]
        success: SuccessArgs,
    },
    /// Make a job of a template
    #[command(after_help = "Example:
  latch job run lock-up --set building=43 --wait")]
    Run {
        /// The template's name
        name: TemplateName,
        /// A parameter's value, as text; again for each
        #[arg(long, value_name = "NAME=TEXT", value_parser = assignment)]
        set: Vec<(String, String)>,
        /// A parameter's value, as JSON; again for each
        #[arg(long, value_name = "NAME=JSON", value_parser = assignment)]
        set_json: Vec<(String, String)>,
        /// The job's id [default: made up]
        #[arg(long, value_name = "ID")]
        id: Option<JobId>,
        /// Follow the job until it ends
        #[arg(long)]
        wait: bool,
    },
    /// Manage templates: jobs with places left open
    #[command(subcommand)]
    Template(TemplateCommand),
    /// List jobs, the newest first
    List,
    /// Show a job, or how it went on one device
    Show {
        /// The job's id
        id: JobId,
        /// This device's row and every attempt at it; of jobs of the embedded hub
        #[arg(long, value_name = "DEVICE[/MODULE]")]
        device: Option<Address>,
    },
    /// Follow a job until it ends, whoever made it; with --json, the job at each change, a line each
    ///
    /// On a terminal: its state and stage, a bar, the rate, when it will be over, and failures by class. Ctrl-C ends the
    /// watching, not the job.
    Watch {
        /// The job's id
        id: JobId,
    },
    /// Cancel a job; outcomes that are known stay, and of one that comes again, jobs that have begun go on
    Cancel {
        /// The job's id
        id: JobId,
    },
    /// Begin nothing new on any device, until the job is resumed; its time stands still
    #[command(
        after_help = "Azure's own engine cannot do this: it is for jobs of the embedded hub and of latch run --jobs.

Example:
  latch job pause lock-all --reason 'building 43 reports failures'"
    )]
    Pause {
        /// The job's id
        id: JobId,
        /// For whoever looks at the job
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Go on with a job that is paused, with the devices that are left
    Resume {
        /// The job's id
        id: JobId,
    },
    /// Go on to the next stage of a job that waits for approval (--stage-approval)
    Approve {
        /// The job's id
        id: JobId,
        /// Only if this is the stage that went well, counted from 1
        #[arg(long, value_name = "N")]
        stage: Option<u32>,
    },
    /// Make a job for those devices of another that failed
    #[command(after_help = "Examples:
  latch job retry lock-all --wait
  latch job retry lock-all --class timeout,offline --id lock-all-again")]
    Retry {
        /// The job whose devices failed
        source: JobId,
        /// Only those that failed so, such as timeout,offline [default: all]
        #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = policy::class)]
        class: Vec<FailureClass>,
        #[command(flatten)]
        again: AgainArgs,
    },
    /// Make a job like another: the same action, devices and policy
    Clone {
        /// The job to do once more
        source: JobId,
        #[command(flatten)]
        again: AgainArgs,
    },
    /// Show how a job's devices stand and why they failed, by the groups of --group-by
    Report {
        /// The job's id
        id: JobId,
    },
    /// Show each device's outcome
    Results(ResultsArgs),
    /// Show who did what to jobs, and check that nobody has edited that; of jobs of the embedded hub
    Audit(AuditArgs),
}

/// A job that is made of another.
#[derive(Debug, ClapArgs)]
pub(crate) struct AgainArgs {
    /// The new job's id [default: made up]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<JobId>,
    /// When to start, such as 2026-12-24T18:00:00Z [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) start: Option<String>,
    /// Follow the job until it ends
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Keep a template, in place of one of that name if there is one
    #[command(
        after_help = "The file is JSON: the parameters, and a job as PUT /jobs/v2/{id} takes it, in whose texts ${name}
stands for a parameter:

  {\"description\": \"Lock a building\", \"parameters\": {\"building\": {}, \"rate\": {\"default\": 50}},
   \"job\": {\"type\": \"scheduleDeviceMethod\", \"cloudToDeviceMethod\": {\"methodName\": \"lockDoor\"},
           \"queryCondition\": \"tags.building = '${building}'\",
           \"latch\": {\"version\": 1, \"policy\": {\"rate\": \"${rate}\"}}}}"
    )]
    Put {
        /// The template's name
        name: TemplateName,
        /// The template
        file: PathBuf,
    },
    /// List all templates and their parameters
    List,
    /// Show a template
    Show {
        /// The template's name
        name: TemplateName,
    },
    /// Delete a template; jobs that were made of it stay
    Delete {
        /// The template's name
        name: TemplateName,
    },
}

/// `building=43`.
fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a parameter is NAME=VALUE: building=43")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ScheduleArgs {
    #[command(flatten)]
    pub(crate) targets: TargetArgs,
    /// The job's id [default: made up]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<JobId>,
    /// When to start, such as 2026-12-24T18:00:00Z; with --cron, not before that [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) start: Option<String>,
    /// Seconds from the start until the job ends, whatever is left of it
    #[arg(long, value_name = "S", default_value_t = iothub_protocol::job::DEFAULT_MAX_EXECUTION,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(iothub_protocol::job::MAX_MAX_EXECUTION)))]
    pub(crate) max_execution: u32,
    /// What follows on each device, step by step: a JSON list in a file, as latch.then of the job's schema has it
    #[arg(long, value_name = "FILE", long_help = THEN_HELP)]
    pub(crate) then: Option<PathBuf>,
    /// Tell what the job would come to, and make none: devices, stages, other jobs, time, quota (the embedded hub's)
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Follow the job until it ends
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) recurrence: RecurrenceArgs,
}

const THEN_HELP: &str =
    "What follows on each device, step by step: a JSON list in a file. Each step is an action as in \
IoT Hub's jobs, and may wait for the answer before it, or for the device's twin:

[{\"type\": \"scheduleUpdateTwin\",
  \"updateTwin\": {\"etag\": \"*\", \"tags\": {\"state\": \"locked\"}},
  \"when\": {\"statuses\": [[200, 299]],
           \"condition\": \"properties.reported.door.locked = true\",
           \"withinInSeconds\": 60, \"otherwise\": \"fail\"}}]";

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Tell every mistake in a configuration, or what it comes to; starts nothing
    #[command(after_help = "The files and variables that it names are read as well. The README has a whole example.

Example:
  latch config check fleet/latch.toml")]
    Check {
        /// The configuration
        #[arg(value_name = "FILE", default_value = crate::config::FILE_NAME)]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Start a plugin of your own: a project that builds and has a test
    #[command(after_help = "Example:
  latch plugin new my-door --lang python
  latch plugin build --workspace my-door
  latch plugin test my-door/tests --plugin target/plugins/my-door.wasm")]
    New(NewArgs),
    /// Compile plugins to components
    #[command(after_help = "Examples:
  latch plugin build
  latch plugin build --lang all
  latch plugin build lock-door-js
  latch plugin build --workspace my-door --out target/plugins")]
    Build(BuildArgs),
    /// Run a plugin against scripted devices, on a clock that the script turns, with no hub and no network
    #[command(after_help = "Examples:
  latch plugin test plugins/lock-door/tests --plugin target/plugins/lock-door.wasm
  latch plugin test my-door/tests/hello.toml --plugin target/plugins/my-door.wasm

A scenario is TOML, with JSON in texts; what a step does not mention is not compared:
  [device]                              # at first: id, now, desired, reported, state, timers
  desired = '{\"building\": \"43\"}'

  [[step]]
  call = \"lockDoor\"                     # or desired = '{…}', a merge patch; or as below
  payload = '{\"by\": \"ann\"}'
  status = 200                          # also answer, answer-text, telemetry, state, fails
  reported = '{\"door\": {\"locked\": true}}'
  timers = { relock = \"in 5m\" }         # those that wait, all of them

  [[step]]
  wait = \"5m\"                           # or again = true: until what was put off comes again
  fired = [\"relock\"]                    # also retry = \"…\", if it should be put off

  [[step]]
  restart = true                        # the host is killed and starts; \"1h\": an hour later")]
    Test(TestArgs),
    /// Say what a component is, and whether the host would take it
    Check {
        /// The component
        file: PathBuf,
    },
    /// List the plugins of the running host: their versions, and how many devices run each
    #[command(after_help = "Examples:
  latch plugin list
  latch plugin list lock-door")]
    List {
        /// Only this plugin, with the devices that run each version, and those that cannot run what they should
        name: Option<String>,
    },
    /// Replace a plugin of the running host, without a restart and without losing a call
    #[command(
        after_help = "With --percent, --devices or --query the new version is a canary: those devices run it, the others what they ran. If more \
of its calls fail than --max-failures within --window, it is withdrawn by itself. After that it stays a canary until \
`latch plugin promote` makes it current; a swap without these options, or a new file, ends its trial.

The devices of --query are asked for once, and listed; --percent is a share of them.
A device runs what its twin pins (desired latch.plugins.NAME), else the operator's pin, else the canary, else the current version.

Examples:
  latch plugin swap lock-door target/plugins/next/lock-door.wasm
  latch plugin swap lock-door target/plugins/next/lock-door.wasm --percent 5
  latch plugin swap my-door target/plugins/my-door.wasm --test my-door/tests
  latch plugin swap lock-door target/plugins/next/lock-door.wasm --devices 'door-00*' --window 600
  latch plugin swap lock-door target/plugins/next/lock-door.wasm --query \"tags.site = 'A'\""
    )]
    Swap(SwapArgs),
    /// Make the canary of a plugin its current version, for every device
    Promote {
        /// The plugin's name
        name: String,
    },
    /// Withdraw the canary of a plugin; without one, go back to the version that was current before
    Rollback {
        /// The plugin's name
        name: String,
    },
    /// Roll a version out, stage by stage, as long as the devices report that it does well
    #[command(
        after_help = "A twin job pins the version on the devices of --query (5%, 50%, then all, unless --stage says otherwise). A device \
succeeds once it has reported for --soak that it runs the version; it fails if it reports that too many calls fail, that \
the version is in quarantine, or that it has no such version. A stage with too many failures aborts the job: the devices \
whose turn had not come never see the version. The plugin's host must keep the version: `latch plugin list` shows which \
there are, and `latch plugin swap NAME FILE --devices none` brings one without running it anywhere.

Examples:
  latch plugin rollout lock-door 2.0.0 --query '*' --wait
  latch plugin rollout lock-door 2.0.0 --query \"tags.site = 'A'\" --stage 10,100 --soak 10m --abort-failures 5% --unpin-on-abort
  latch job watch JOB"
    )]
    Rollout(Box<RolloutArgs>),
    /// Keep devices on a version, whatever is current
    #[command(
        after_help = "A pin in a device's twin is stronger. The latest of several pins that match a device counts.

Examples:
  latch plugin pin lock-door 1.0.0 --devices 'door-00*'
  latch plugin pin lock-door 1.0.0 --query \"tags.site = 'A'\"
  latch job twin --desired '{\"latch\": {\"plugins\": {\"lock-door\": \"1.0.0\"}}}' --query \"tags.site = 'A'\""
    )]
    Pin {
        /// The plugin's name
        name: String,
        /// A semantic version, of which the newest counts, or a hash (its first 12 digits or more)
        #[arg(value_name = "VERSION")]
        wanted: String,
        #[command(flatten)]
        devices: DevicesArgs,
    },
    /// Remove pins
    Unpin {
        /// The plugin's name
        name: String,
        /// Only the pin that was made with this pattern [default: all pins of the plugin]
        #[arg(long, value_name = "GLOB")]
        devices: Option<String>,
        /// Only the pin that was made with this query
        #[arg(long, value_name = "CONDITION", conflicts_with = "devices")]
        query: Option<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SwapArgs {
    /// The plugin's name
    pub(crate) name: String,
    /// The component to run from now on
    pub(crate) file: PathBuf,
    /// Only on so many percent of the devices, as a canary; always the same ones, and a larger share contains a smaller
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) percent: Option<u8>,
    #[command(flatten)]
    pub(crate) devices: DevicesArgs,
    /// Seconds for which the canary's calls are watched [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) window: Option<u32>,
    /// Percent of the canary's calls that may fail, of at least 10 [default: 5]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    pub(crate) max_failures: Option<u8>,
    /// Only if it passes these scenarios, as `latch plugin test` runs them
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) test: Option<PathBuf>,
}

/// The devices of a canary or a pin.
#[derive(Debug, ClapArgs)]
pub(crate) struct DevicesArgs {
    /// Only the devices whose id matches: * stands for any text, ? for one character
    #[arg(long, value_name = "GLOB")]
    pub(crate) devices: Option<String>,
    /// Only the devices that meet a condition on twins, or that a whole SELECT gives, as the hub has them now
    #[arg(long, value_name = "CONDITION", conflicts_with = "devices")]
    pub(crate) query: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NewArgs {
    /// The plugin's name, and its folder's
    pub(crate) name: String,
    /// The language that it will be written in
    #[arg(long, value_enum, default_value_t = NewLanguage::Rust)]
    pub(crate) lang: NewLanguage,
    /// Where the project's folder is made
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) into: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NewLanguage {
    Rust,
    #[value(alias = "javascript")]
    Js,
    #[value(alias = "py")]
    Python,
    C,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TestArgs {
    /// A scenario, or a folder of scenarios (TOML)
    #[arg(value_name = "FILE|DIR", default_value = "tests")]
    pub(crate) scenarios: PathBuf,
    /// The component to test
    #[arg(long, value_name = "FILE")]
    pub(crate) plugin: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BuildArgs {
    /// Only these: packages of the workspace, or folders in it with a latch-plugin.toml
    pub(crate) packages: Vec<String>,
    /// Only plugins in these languages; without names and this option, the ones in Rust if there are any
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LANGUAGE")]
    pub(crate) lang: Vec<BuildLanguage>,
    /// A workspace of plugins, or one plugin's folder
    #[arg(long, value_name = "DIR", default_value = "plugins")]
    pub(crate) workspace: PathBuf,
    /// Where the components go
    #[arg(long, value_name = "DIR", default_value = "target/plugins")]
    pub(crate) out: PathBuf,
    /// Where tools that have to be installed go
    #[arg(long, value_name = "DIR", default_value = "target/tools")]
    pub(crate) tools: PathBuf,
    /// Which Rust compiles those in Rust
    #[arg(long, value_enum, default_value_t = Toolchain::Auto)]
    pub(crate) toolchain: Toolchain,
    /// Also build the fixtures that misbehave on purpose
    #[arg(long)]
    pub(crate) fixtures: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BuildLanguage {
    Rust,
    #[value(alias = "javascript")]
    Js,
    #[value(alias = "py")]
    Python,
    C,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Toolchain {
    /// Whichever works here
    Auto,
    /// The Rust on PATH, with the wasm32-wasip2 target
    Rustup,
    /// Debian's packages
    Debian,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
