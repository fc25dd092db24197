//! `latch hub token`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::Utc;
use serde_json::Value;

use super::events::encoded;
use crate::args::TokenArgs;
use crate::context::Context;
use crate::output::line;

/// Whose key signs for back ends that only use devices.
const DEFAULT_POLICY: &str = "service";
/// What is longer should be a key.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The one command beside `device create --json` that prints a secret: it is what is asked for.
pub(super) async fn run(args: TokenArgs, context: &Context) -> anyhow::Result<()> {
    if args.ttl < Duration::from_secs(1) || args.ttl > LONGEST {
        bail!("--ttl must be between 1s and 365d");
    }
    let token = match context.named_connection()? {
        Some(connection) => {
            if args.policy.as_ref().is_some_and(|policy| *policy != connection.policy) {
                bail!(
                    "the connection string has a key of the policy {} only; leave --policy out, or take the connection \
                     string of the policy that you want",
                    connection.policy
                );
            }
            connection.key.sign(&connection.host.name, Some(&connection.policy), Utc::now() + args.ttl)
        }
        None => {
            let policy = args.policy.as_deref().unwrap_or(DEFAULT_POLICY);
            let path = format!("/policies/{}/token?seconds={}", encoded(policy), args.ttl.as_secs());
            let answer = context.admin().post(&path, &Value::Null).await?;
            answer["token"].as_str().context("the running latch answered without a token")?.to_owned()
        }
    };
    line(&token)
}
