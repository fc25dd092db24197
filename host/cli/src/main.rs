//! `latch`: the one binary, and the only place where the parts of the system meet.
//!
//! [`args`] is what was typed, [`context`] what it means together with the environment, [`config`] and [`settings`] what a
//! fleet's configuration adds, `commands` what is then done. Commands see neither raw arguments nor the environment. `main` turns one result into an exit code.

mod admin_client;
mod admin_server;
mod args;
mod commands;
mod config;
mod context;
mod data_folder;
mod descriptors;
mod device_certificates;
mod engines;
mod exit;
mod fleet;
mod hub;
mod jobs;
mod listeners;
mod machine;
mod output;
mod plugin_build;
mod progress;
mod reload;
mod scenarios;
mod settings;
mod signals;
mod units;
mod watch;
mod webhook;

use std::process::ExitCode;

use clap::Parser as _;

use args::Args;
use context::Context;

fn main() -> ExitCode {
    let args = Args::parse();
    let context = Context::new(&args.global);
    context.start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    let result = runtime.block_on(commands::run(args.command, &context));
    // A blocking task that hangs (a name that does not resolve, say) must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}
