//! `latch query`.

use iothub_service::PageRequest;
use serde_json::Value;

use crate::args::QueryArgs;
use crate::context::Context;
use crate::output::{document, line};

/// Rows of a page, the hub's most.
const PAGE: u32 = 1000;

/// One row a line, as it comes; with `--json` one array at the end.
pub(super) async fn run(args: QueryArgs, context: &Context) -> anyhow::Result<()> {
    let service = context.service()?;
    let mut request = PageRequest { max_items: Some(PAGE), continuation: None };
    let mut all = Vec::new();
    loop {
        let page = service.query(&args.query, &request).await?;
        if context.json {
            all.extend(page.items);
        } else {
            page.items.iter().try_for_each(|row| line(&row.to_string()))?;
        }
        request.continuation = page.continuation;
        if request.continuation.is_none() {
            break;
        }
    }
    if context.json { document(&Value::Array(all)) } else { Ok(()) }
}
