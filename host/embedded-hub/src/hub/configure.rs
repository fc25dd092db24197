//! What configurations do to a twin.

use std::sync::Arc;

use iothub_protocol::address::Address;
use iothub_protocol::configuration::ConfigurationMarks;
use iothub_protocol::error::HubError;
use iothub_protocol::twin::TwinPatch;

use super::{Answer, Hub, Now};
use crate::events::TwinChange;

impl<R> Hub<R> {
    /// Merge what configurations set, as a back end would, and note which they are. Marks alone change no version.
    pub(super) fn configure(
        &mut self,
        now: Now,
        id: &Address,
        patch: &TwinPatch,
        marks: ConfigurationMarks,
        if_match: Option<&str>,
    ) -> Result<Answer, HubError> {
        self.change_twin(now, id, if_match, patch, TwinChange::Updated)?;
        if let Some(entity) = self.entities.get_mut(id) {
            Arc::make_mut(&mut entity.twin).configurations = marks;
        }
        Ok(Answer::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use chrono::DateTime;
    use iothub_protocol::configuration::ConfigurationStatus;
    use iothub_protocol::error::ErrorCode;
    use iothub_protocol::id::ConfigurationId;
    use iothub_protocol::identity::IdentityRequest;
    use serde_json::{Value, json};

    use super::super::{Change, Input, Operation, Output};
    use super::*;
    use crate::feedback::FeedbackQueue;
    use crate::policy::random_key;

    fn ask(hub: &mut Hub<()>, operation: Operation) -> (Result<Answer, HubError>, usize, usize) {
        let now = Now { wall: DateTime::UNIX_EPOCH, steady: Instant::now() };
        hub.handle(now, Input::Request { reply: (), operation });
        let outcome = hub.take_outcome();
        let twins = outcome.changes.iter().filter(|change| matches!(change, Change::Twin(..))).count();
        let events = outcome.gated.iter().filter(|output| matches!(output, Output::Event(_))).count();
        let replies = outcome.gated.into_iter().filter_map(|output| match output {
            Output::Reply((), answer) => Some(answer),
            _ => None,
        });
        (replies.last().expect("an answer"), twins, events)
    }

    fn configure(desired: Value, etag: &str) -> Operation {
        let mark = (ConfigurationId::parse("c").expect("an id"), ConfigurationStatus::Applied);
        Operation::Configure {
            id: Address::parse("d1").expect("an id"),
            patch: TwinPatch { tags: None, desired: desired.as_object().cloned() },
            marks: [mark].into(),
            if_match: Some(etag.to_owned()),
        }
    }

    #[test]
    fn marks_alone_are_written_and_told_to_nobody() {
        let mut hub = Hub::new(vec![], vec![], FeedbackQueue::default());
        let id = Address::parse("d1").expect("an id");
        let (request, keys) = (IdentityRequest::default(), [random_key(), random_key()]);
        assert!(ask(&mut hub, Operation::PutIdentity { id: id.clone(), request, if_match: None, keys }).0.is_ok());
        assert_eq!(ask(&mut hub, configure(json!({}), "AAAAAAAAAAE=")), (Ok(Answer::Done), 1, 0));
        assert_eq!(ask(&mut hub, configure(json!({"x": 1}), "AAAAAAAAAAE=")), (Ok(Answer::Done), 1, 1));
        let (refused, twins, _) = ask(&mut hub, configure(json!({"x": 2}), "AAAAAAAAAAE="));
        assert_eq!((refused.map_err(|error| error.code), twins), (Err(ErrorCode::PreconditionFailed), 0));
        let Ok(Answer::Document(twin)) = ask(&mut hub, Operation::GetTwin(id)).0 else { panic!("no twin") };
        assert_eq!((&twin["version"], &twin["properties"]["desired"]["x"]), (&json!(2), &json!(1)));
        assert_eq!(twin["configurations"], json!({"c": {"status": "Applied"}}));
    }
}
