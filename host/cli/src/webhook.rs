//! The webhook of jobs as `up`, `hub` and `run --jobs` have it.

use std::fs;

use anyhow::{Context as _, bail};
use iothub_device::tls::{Roots, client_config};
use job_engine::JobEngine;
use job_webhook::{Secret, Webhook, WebhookError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::WebhookArgs;
use crate::context::{Context, tls_for};

/// What a secret can stand in instead of an argument or a file.
const ADDRESS: &str = "LATCH_JOB_WEBHOOK";
const SECRET: &str = "LATCH_JOB_WEBHOOK_SECRET";

/// The webhook that is asked for, if one is.
///
/// # Errors
/// If it lacks something, or its address, secret or authority is none.
pub(crate) fn wanted(args: &WebhookArgs) -> anyhow::Result<Option<Webhook>> {
    let WebhookArgs { job_webhook, job_webhook_secret_file: file, job_webhook_ca: ca, job_webhook_plain: plain } = args;
    let set = |name: &str| Context::variable(name).filter(|text| !text.is_empty());
    let Some(address) = job_webhook.clone().or_else(|| set(ADDRESS)) else {
        if file.is_some() || ca.is_some() || *plain {
            bail!("there is no webhook that this would be for\nhint: give --job-webhook URL, or set {ADDRESS}");
        }
        return Ok(None);
    };
    let (text, from) = match (file, set(SECRET)) {
        (Some(file), _) => {
            let at = file.display().to_string();
            (fs::read_to_string(file).with_context(|| format!("cannot read {at}"))?, at)
        }
        (None, Some(text)) => (text, SECRET.to_owned()),
        (None, None) => bail!(
            "a webhook needs a secret, by which its receiver knows who sends\nhint: echo whsec_$(openssl rand -base64 32) > \
             webhook.secret, and give it by --job-webhook-secret-file"
        ),
    };
    let secret = Secret::parse(&text).with_context(|| from)?;
    let tls = match ca {
        Some(file) => Some(tls_for(file)?),
        None if address.starts_with("http:") => None,
        None => Some(client_config(Roots::System)?),
    };
    match Webhook::new(&address, secret, tls, *plain) {
        Ok(webhook) => Ok(Some(webhook)),
        Err(error @ WebhookError::Plain(_)) => {
            bail!("--job-webhook: {error}\nhint: use https://, or allow it by --job-webhook-plain")
        }
        Err(error) => bail!("--job-webhook: {error}"),
    }
}

/// A webhook that is under way.
pub(crate) struct Telling {
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Telling {
    pub(crate) fn start(webhook: Webhook, jobs: JobEngine) -> Telling {
        let cancel = CancellationToken::new();
        Telling { task: tokio::spawn(webhook.run(jobs, cancel.clone())), cancel }
    }

    /// What has not been taken yet goes out after the next start.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        // One that panicked has nothing left to wait for.
        drop(self.task.await);
    }
}
