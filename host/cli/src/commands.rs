//! One module for each command.

mod audit;
mod ca;
mod config;
mod configuration;
mod demo;
mod device;
mod events;
mod hub_store;
mod job;
mod message;
mod method;
mod module;
mod plugin;
mod policy;
mod query;
mod rehearse;
mod results;
mod rollout;
mod run;
mod targets;
mod token;
mod twin;
mod up;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use crate::args::{CallArgs, Command, HubCommand, TwinChange};
use crate::context::Context;

pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo::run(args, context).await,
        Command::Up(args) => up::up(args, context).await,
        Command::Hub(args) => match args.command {
            Some(HubCommand::Token(args)) => token::run(args, context).await,
            Some(HubCommand::Rehearse(command)) => rehearse::run(command, context).await,
            Some(HubCommand::Ca(command)) => ca::run(command, context).await,
            Some(HubCommand::Store(command)) => hub_store::run(command, context).await,
            None => up::hub(args, context).await,
        },
        Command::Run(args) => run::run(args, context).await,
        Command::Device(command) => device::run(command, context).await,
        Command::Module(command) => module::run(command, context).await,
        Command::Twin(command) => twin::run(command, context).await,
        Command::Method(args) => method::run(args, context).await,
        Command::Message(command) => message::run(command, context).await,
        Command::Query(args) => query::run(args, context).await,
        Command::Job(command) => job::run(*command, context).await,
        Command::Events(args) => events::run(args, context).await,
        Command::Configuration(command) => configuration::run(command, context).await,
        Command::Config(command) => config::run(&command, context),
        Command::Plugin(command) => plugin::run(command, context).await,
    }
}

/// A JSON value from an option.
fn json_option(name: &str, text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).with_context(|| format!("{name} is not JSON (a text needs quotes inside: '\"text\"')"))
}

fn object_option(name: &str, text: Option<&str>) -> anyhow::Result<Option<Map<String, Value>>> {
    let Some(text) = text else { return Ok(None) };
    match json_option(name, text)? {
        Value::Object(object) => Ok(Some(object)),
        _ => bail!("{name} is not a JSON object"),
    }
}

fn twin_update(change: &TwinChange) -> anyhow::Result<iothub_protocol::job::TwinUpdate> {
    Ok(iothub_protocol::job::TwinUpdate {
        tags: object_option("--tags", change.tags.as_deref())?,
        desired: object_option("--desired", change.desired.as_deref())?,
    })
}

fn direct_method(
    name: iothub_protocol::id::MethodName,
    call: &CallArgs,
) -> anyhow::Result<iothub_protocol::method::DirectMethod> {
    let payload = call.payload.as_deref().map(|text| json_option("--payload", text)).transpose()?;
    Ok(iothub_protocol::method::DirectMethod {
        method_name: name,
        payload: payload.unwrap_or_default(),
        response_timeout_in_seconds: call.response_timeout,
        connect_timeout_in_seconds: call.connect_timeout,
    })
}
