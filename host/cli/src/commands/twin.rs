//! `latch twin`.

use crate::args::TwinCommand;
use crate::context::Context;
use crate::output::document;

pub(super) async fn run(command: TwinCommand, context: &Context) -> anyhow::Result<()> {
    let service = context.service()?;
    let twin = match command {
        TwinCommand::Show { id } => service.get_twin(&id).await?,
        TwinCommand::Update { id, change, etag } => {
            let update = super::twin_update(&change)?;
            service.patch_twin(&id, &update, etag.as_deref()).await?
        }
    };
    document(&twin)
}
