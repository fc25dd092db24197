//! Where what happens to jobs is told, as it is typed.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// Where `--help` shows it.
const WEBHOOK: &str = "Webhook of jobs";

#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct WebhookArgs {
    /// POST what happens to jobs (created, started, stage, paused, resumed, ended) to this address, signed as Standard
    /// Webhooks has it; or set LATCH_JOB_WEBHOOK
    #[arg(long, help_heading = WEBHOOK, value_name = "URL")]
    pub(crate) job_webhook: Option<String>,
    /// File with the secret that the receiver shares, made by: echo whsec_$(openssl rand -base64 32). With a key on each
    /// of several lines, each signs; or set LATCH_JOB_WEBHOOK_SECRET
    #[arg(long, help_heading = WEBHOOK, value_name = "FILE")]
    pub(crate) job_webhook_secret_file: Option<PathBuf>,
    /// PEM file with the authority of the receiver's certificate [default: the system's]
    #[arg(long, help_heading = WEBHOOK, value_name = "FILE")]
    pub(crate) job_webhook_ca: Option<PathBuf>,
    /// Let events go over http:// to another machine, for anybody on the way to read
    #[arg(long, help_heading = WEBHOOK)]
    pub(crate) job_webhook_plain: bool,
}
