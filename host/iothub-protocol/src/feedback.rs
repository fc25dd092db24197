//! Feedback on cloud-to-device messages: how they ended, as the back ends that asked for it hear.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::id::DeviceId;
use crate::link::Feedback;
use crate::time;

impl Feedback {
    /// As `iothub-ack` has it, `none` included.
    pub fn name(self) -> &'static str {
        self.word().unwrap_or("none")
    }

    /// Whether a sender who asked for this is told of such an end.
    pub fn wants(self, ended: MessageEnd) -> bool {
        match self {
            Feedback::None => false,
            Feedback::Positive => ended == MessageEnd::Success,
            Feedback::Negative => ended != MessageEnd::Success,
            Feedback::Full => true,
        }
    }
}

/// How a message ended. All but the first mean that it is dead-lettered, which is: gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageEnd {
    /// The device has completed it.
    Success,
    Expired,
    /// It was given back too often.
    DeliveryCountExceeded,
    /// The device does not want it; over HTTPS only, as MQTT has no word for that.
    Rejected,
    Purged,
}

impl MessageEnd {
    pub const ALL: [MessageEnd; 5] = [
        MessageEnd::Success,
        MessageEnd::Expired,
        MessageEnd::DeliveryCountExceeded,
        MessageEnd::Rejected,
        MessageEnd::Purged,
    ];

    /// The `statusCode` of feedback.
    pub fn name(self) -> &'static str {
        match self {
            MessageEnd::Success => "Success",
            MessageEnd::Expired => "Expired",
            MessageEnd::DeliveryCountExceeded => "DeliveryCountExceeded",
            MessageEnd::Rejected => "Rejected",
            MessageEnd::Purged => "Purged",
        }
    }

    pub fn by_name(name: &str) -> Option<MessageEnd> {
        MessageEnd::ALL.into_iter().find(|end| end.name() == name)
    }
}

/// One message's feedback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedbackRecord {
    /// `None` if the message had none; a sender that wants to know which it was gives one.
    pub message_id: Option<String>,
    /// When the message ended.
    pub time: DateTime<Utc>,
    pub ended: MessageEnd,
    pub device_id: DeviceId,
    /// Tells the device from one that was made anew under its name.
    pub generation_id: u64,
}

impl FeedbackRecord {
    /// As in the array that a back end gets.
    pub fn to_json(&self) -> Value {
        json!({
            "originalMessageId": self.message_id,
            "enqueuedTimeUtc": time::format(self.time),
            "statusCode": self.ended.name(),
            "description": self.ended.name(),
            "deviceId": self.device_id,
            "deviceGenerationId": format!("{:018}", self.generation_id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_hears_of_the_ends_that_it_asked_for() {
        for (feedback, success, others) in [
            (Feedback::None, false, false),
            (Feedback::Positive, true, false),
            (Feedback::Negative, false, true),
            (Feedback::Full, true, true),
        ] {
            for ended in MessageEnd::ALL {
                let expected = if ended == MessageEnd::Success { success } else { others };
                assert_eq!(feedback.wants(ended), expected, "{feedback:?} {ended:?}");
                assert_eq!(MessageEnd::by_name(ended.name()), Some(ended));
            }
        }
    }

    #[test]
    fn a_record_has_azures_members() {
        let record = FeedbackRecord {
            message_id: Some("m1".into()),
            time: DateTime::UNIX_EPOCH,
            ended: MessageEnd::DeliveryCountExceeded,
            device_id: DeviceId::parse("d1").expect("an id"),
            generation_id: 637_025_702_479_770_574,
        };
        let expected = json!({
            "originalMessageId": "m1",
            "enqueuedTimeUtc": "1970-01-01T00:00:00.000Z",
            "statusCode": "DeliveryCountExceeded",
            "description": "DeliveryCountExceeded",
            "deviceId": "d1",
            "deviceGenerationId": "637025702479770574",
        });
        assert_eq!(record.to_json(), expected);
    }
}
