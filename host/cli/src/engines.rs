//! Which engine has a job: the hub's own, or that of a `latch run --jobs` which is reached through the data folder.
//!
//! Azure's engine knows nothing of policies and further steps; ours does, in the embedded hub and in `latch run`.

use anyhow::bail;
use iothub_protocol::error::ErrorCode;
use iothub_protocol::id::JobId;
use iothub_service::{ServiceClient, ServiceError};

use crate::args::EngineChoice;
use crate::context::Context;
use crate::exit::Unreachable;
use crate::jobs;

/// The engines that can be asked.
pub(crate) struct Engines {
    choice: EngineChoice,
    /// The hub, whose own engine it has; else why there is none.
    hub: anyhow::Result<ServiceClient>,
    /// A `latch run --jobs` on the same hub.
    run: Option<ServiceClient>,
    /// Where that one would be.
    folder: String,
}

/// What the hub's own engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hub {
    None,
    Azure,
    Embedded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Hub,
    Run,
}

impl Engines {
    /// Find them.
    ///
    /// # Errors
    /// If the hub's connection string cannot be read, and if the engine that was chosen works on another hub.
    pub(crate) async fn find(context: &Context, choice: EngineChoice) -> anyhow::Result<Engines> {
        let hub = match context.service() {
            Err(error) if !error.is::<Unreachable>() => return Err(error),
            hub => hub,
        };
        let folder = context.data.display().to_string();
        let mut run = None;
        if choice != EngineChoice::Azure
            && let Some(its_hub) = jobs::hub_of_running(&context.admin()).await
        {
            let ours = hub.as_ref().ok().map(|hub| hub.host().authority());
            match ours {
                Some(ours) if !ours.eq_ignore_ascii_case(&its_hub) => {
                    if choice == EngineChoice::Latch {
                        bail!(
                            "the latch run on {folder} runs jobs on the hub {its_hub}, not on {ours}\nhint: name its data \
                             folder with --data, or its hub with --hub"
                        );
                    }
                }
                _ => run = Some(jobs::client(&context.data)?),
            }
        }
        Ok(Engines { choice, hub, run, folder })
    }

    /// The one for a new job; `has_extras` if it has what Azure's engine does not know.
    ///
    /// # Errors
    /// If there is none for it, with what to start.
    pub(crate) fn for_new(self, has_extras: bool) -> anyhow::Result<ServiceClient> {
        let which = choose(self.choice, self.kind(), self.run.is_some(), has_extras, &self.folder);
        match (which.map_err(Unreachable)?, self.run) {
            (Which::Run, Some(run)) => Ok(run),
            _ => self.hub,
        }
    }

    /// The one that has a job. If none has it, whichever says so.
    pub(crate) async fn of(self, id: &JobId) -> anyhow::Result<ServiceClient> {
        let kind = self.kind();
        let Some(run) = self.run else {
            choose(self.choice, kind, false, false, &self.folder).map_err(Unreachable)?;
            return self.hub;
        };
        if self.choice == EngineChoice::Latch {
            return Ok(run);
        }
        match run.get_job(id).await {
            Err(ServiceError::Hub(error)) if error.code == ErrorCode::JobNotFound && kind != Hub::None => self.hub,
            Err(error) if !matches!(error, ServiceError::Hub(_)) => Err(error.into()),
            _ => Ok(run),
        }
    }

    /// All of them, each with its name.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn all(self) -> anyhow::Result<Vec<(&'static str, ServiceClient)>> {
        let kind = self.kind();
        let wants_hub = self.choice != EngineChoice::Latch || self.run.is_none();
        if wants_hub && (kind != Hub::None || self.run.is_none()) {
            choose(self.choice, kind, self.run.is_some(), false, &self.folder).map_err(Unreachable)?;
            let name = if kind == Hub::Azure { "azure" } else { "hub" };
            let hub = [(name, self.hub?)];
            return Ok(hub.into_iter().chain(self.run.map(|run| ("latch", run))).collect());
        }
        Ok(self.run.map(|run| ("latch", run)).into_iter().collect())
    }

    fn kind(&self) -> Hub {
        match &self.hub {
            Err(_) => Hub::None,
            Ok(hub) if hub.host().name.to_ascii_lowercase().contains(".azure-devices.") => Hub::Azure,
            Ok(_) => Hub::Embedded,
        }
    }
}

/// The error says what to do. Without a hub, [`Which::Hub`] means that there is none.
fn choose(choice: EngineChoice, hub: Hub, has_run: bool, has_extras: bool, folder: &str) -> Result<Which, String> {
    let start = format!("start one with `latch run --jobs --data {folder}`, or name its data folder with --data");
    match (choice, hub) {
        (EngineChoice::Latch, _) | (EngineChoice::Auto, Hub::None) if has_run => Ok(Which::Run),
        (EngineChoice::Azure, Hub::Azure) if has_extras => Err(
            "Azure's engine knows no policies, lists, exclusions and further steps: it would go over all devices at \
             once\nhint: leave their options out, or have `latch run --jobs` run the job with --engine latch"
                .to_owned(),
        ),
        (EngineChoice::Auto, Hub::Azure) if has_extras => match has_run {
            true => Ok(Which::Run),
            false => Err(format!(
                "Azure's engine knows no policies, lists, exclusions and further steps, and no latch run --jobs was found \
                 on {folder}\nhint: {start}"
            )),
        },
        (EngineChoice::Latch, Hub::Azure) => {
            Err(format!("no latch run --jobs was found on {folder} that could run it\nhint: {start}"))
        }
        // The embedded hub's own engine is ours.
        _ => Ok(Which::Hub),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_goes_to_the_engine_that_can_run_it() {
        use EngineChoice::{Auto, Azure, Latch};
        for (choice, hub, has_run, has_extras, expected) in [
            (Auto, Hub::Azure, true, false, Ok(Which::Hub)),
            (Auto, Hub::Azure, true, true, Ok(Which::Run)),
            (Auto, Hub::Azure, false, false, Ok(Which::Hub)),
            (Auto, Hub::Azure, false, true, Err("hint: start one with `latch run --jobs --data d`")),
            (Auto, Hub::Embedded, true, true, Ok(Which::Hub)),
            (Auto, Hub::None, true, false, Ok(Which::Run)),
            (Auto, Hub::None, false, true, Ok(Which::Hub)),
            (Azure, Hub::Azure, true, false, Ok(Which::Hub)),
            (Azure, Hub::Azure, true, true, Err("with --engine latch")),
            (Azure, Hub::Embedded, true, true, Ok(Which::Hub)),
            (Latch, Hub::Azure, true, false, Ok(Which::Run)),
            (Latch, Hub::Azure, false, false, Err("hint: start one with `latch run --jobs --data d`")),
            (Latch, Hub::Embedded, true, false, Ok(Which::Run)),
            (Latch, Hub::Embedded, false, true, Ok(Which::Hub)),
            (Latch, Hub::None, true, true, Ok(Which::Run)),
        ] {
            let case = format!("{choice:?}, {hub:?}, run: {has_run}, extras: {has_extras}");
            match (choose(choice, hub, has_run, has_extras, "d"), expected) {
                (Err(error), Err(text)) => assert!(error.contains(text), "{case}: {error}"),
                (found, expected) => assert_eq!(found.as_ref().ok(), expected.as_ref().ok(), "{case}"),
            }
        }
    }
}
