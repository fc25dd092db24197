//! `latch method`.

use serde_json::json;

use crate::args::MethodArgs;
use crate::context::Context;
use crate::output::{document, line};

pub(super) async fn run(args: MethodArgs, context: &Context) -> anyhow::Result<()> {
    let method = super::direct_method(args.name, &args.call)?;
    let response = context.service()?.invoke_method(&args.device, &method).await?;
    if context.json {
        return document(&json!(response));
    }
    line(&format!("{} {}", response.status, response.payload))
}
