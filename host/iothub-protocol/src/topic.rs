//! MQTT topics of a device or a module, in both directions, and the property bag at the end of a message's topic.
//!
//! Ids go into topics as they are; property names and values are percent-encoded, names too (`%24.mid`).

use chrono::{DateTime, SubsecRound as _, Utc};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::address::Address;
use crate::id::{DeviceId, MethodName, RequestId};
use crate::link::{CloudMessage, Feedback, TelemetryMessage};
use crate::time;

/// Longest topic that is looked at; the longest legal one is a telemetry topic with a full bag.
const MAX_TOPIC: usize = 65_535;

/// encodeURIComponent's set and `'`, `!`, `*`, which would do no harm; `+` and `#` must never stand in a topic.
const BAG_KEPT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'*').remove(b'!').remove(b'\'');

/// What cannot stand in a topic, and `%`, which announces an escape. Receivers decode a method's name.
const NAME_ESCAPED: &AsciiSet = &CONTROLS.add(b'+').add(b'#').add(b'%');

/// What a device publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromDevice {
    /// A message; the bag is still encoded, see [`decode_bag`].
    Telemetry {
        bag: String,
    },
    MethodResponse {
        status: i32,
        rid: RequestId,
    },
    TwinGet {
        rid: RequestId,
    },
    ReportedPatch {
        rid: RequestId,
        version: Option<u64>,
    },
}

/// What the hub publishes to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToDevice {
    Method { name: MethodName, rid: RequestId },
    TwinResponse { status: u16, rid: RequestId, version: Option<u64> },
    Desired { version: u64 },
}

/// What a device or a module may subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subscription {
    Methods,
    TwinResponses,
    Desired,
    /// Cloud-to-device messages: a device's only.
    DeviceBound,
    /// Messages from other modules: a module's only. They come by routes of IoT Edge, so the hub itself sends none.
    Inputs,
}

impl FromDevice {
    /// Read the topic of a PUBLISH by `sender`; `None` for anything that the hub does not document, another
    /// device's topics included.
    pub fn parse(sender: &Address, topic: &str) -> Option<FromDevice> {
        if topic.len() > MAX_TOPIC {
            return None;
        }
        if topic.starts_with("devices/") {
            let bag = sender.strip_path(topic)?.strip_prefix("/messages/events")?;
            let bag = if bag.is_empty() { bag } else { bag.strip_prefix('/')? };
            return Some(FromDevice::Telemetry { bag: bag.trim_end_matches('/').to_owned() });
        }
        let (path, query) = topic.split_once('?')?;
        let query = Parameters(query);
        let rid = RequestId::parse(query.get("$rid")?).ok()?;
        match path.trim_end_matches('/') {
            "$iothub/twin/GET" => Some(FromDevice::TwinGet { rid }),
            "$iothub/twin/PATCH/properties/reported" => {
                let version = query.get("$version").map(str::parse).transpose().ok()?;
                Some(FromDevice::ReportedPatch { rid, version })
            }
            path => {
                let status = path.strip_prefix("$iothub/methods/res/")?.parse().ok()?;
                Some(FromDevice::MethodResponse { status, rid })
            }
        }
    }

    pub fn format(&self, sender: &Address) -> String {
        match self {
            FromDevice::Telemetry { bag } => format!("{}/messages/events/{bag}", sender.path()),
            FromDevice::MethodResponse { status, rid } => format!("$iothub/methods/res/{status}/?$rid={rid}"),
            FromDevice::TwinGet { rid } => format!("$iothub/twin/GET/?$rid={rid}"),
            FromDevice::ReportedPatch { rid, version } => {
                let version = version.map(|v| format!("&$version={v}")).unwrap_or_default();
                format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}{version}")
            }
        }
    }
}

impl ToDevice {
    pub fn parse(topic: &str) -> Option<ToDevice> {
        let (path, query) = topic.split_once('?')?;
        let query = Parameters(query);
        let path = path.trim_end_matches('/');
        if path == "$iothub/twin/PATCH/properties/desired" {
            return Some(ToDevice::Desired { version: query.get("$version")?.parse().ok()? });
        }
        let rid = RequestId::parse(query.get("$rid")?).ok()?;
        if let Some(status) = path.strip_prefix("$iothub/twin/res/") {
            let version = query.get("$version").map(str::parse).transpose().ok()?;
            return Some(ToDevice::TwinResponse { status: status.parse().ok()?, rid, version });
        }
        let name = percent_decode_str(path.strip_prefix("$iothub/methods/POST/")?).decode_utf8().ok()?;
        Some(ToDevice::Method { name: MethodName::parse(&name).ok()?, rid })
    }

    pub fn format(&self) -> String {
        match self {
            ToDevice::Method { name, rid } => {
                let name = utf8_percent_encode(name.as_str(), NAME_ESCAPED);
                format!("$iothub/methods/POST/{name}/?$rid={rid}")
            }
            ToDevice::TwinResponse { status, rid, version } => {
                let version = version.map(|v| format!("&$version={v}")).unwrap_or_default();
                format!("$iothub/twin/res/{status}/?$rid={rid}{version}")
            }
            ToDevice::Desired { version } => format!("$iothub/twin/PATCH/properties/desired/?$version={version}"),
        }
    }
}

impl Subscription {
    pub const ALL: [Subscription; 5] = [
        Subscription::Methods,
        Subscription::TwinResponses,
        Subscription::Desired,
        Subscription::DeviceBound,
        Subscription::Inputs,
    ];

    pub fn parse(subscriber: &Address, filter: &str) -> Option<Subscription> {
        // All that is sent to the module by its own topics, which is documented for modules, too.
        if subscriber.is_module() && subscriber.strip_path(filter) == Some("/#") {
            return Some(Subscription::Inputs);
        }
        Subscription::ALL.into_iter().find(|subscription| subscription.filter(subscriber).as_deref() == Some(filter))
    }

    /// `None` for what devices do not have, or modules.
    pub fn filter(self, subscriber: &Address) -> Option<String> {
        match self {
            Subscription::Methods => Some("$iothub/methods/POST/#".to_owned()),
            Subscription::TwinResponses => Some("$iothub/twin/res/#".to_owned()),
            Subscription::Desired => Some("$iothub/twin/PATCH/properties/desired/#".to_owned()),
            Subscription::DeviceBound if subscriber.is_module() => None,
            Subscription::DeviceBound => Some(device_bound_filter(subscriber.device())),
            Subscription::Inputs => subscriber.is_module().then(|| format!("{}/inputs/#", subscriber.path())),
        }
    }
}

/// The filter of [`Subscription::DeviceBound`].
pub fn device_bound_filter(device: &DeviceId) -> String {
    format!("devices/{device}/messages/devicebound/#")
}

/// The topic of a telemetry message.
pub fn telemetry_topic(sender: &Address, message: &TelemetryMessage) -> String {
    let system = [
        ("$.mid", Some(&message.message_id)),
        ("$.ct", message.content_type.as_ref()),
        ("$.ce", message.content_encoding.as_ref()),
    ];
    let system = system.into_iter().filter_map(|(name, value)| Some((name, value?.as_str())));
    let application = message.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    FromDevice::Telemetry { bag: encode_bag(system.chain(application)) }.format(sender)
}

/// The topic under which the hub publishes `message` to `device`.
pub fn cloud_message_topic(device: &DeviceId, message: &CloudMessage) -> String {
    let to = format!("/devices/{device}/messages/devicebound");
    let expiry = message.expiry.map(time::format);
    let system = [
        ("$.mid", message.message_id.as_deref()),
        ("$.to", Some(to.as_str())),
        ("$.cid", message.correlation_id.as_deref()),
        ("$.uid", message.user_id.as_deref()),
        ("$.exp", expiry.as_deref()),
        ("$.ct", message.content_type.as_deref()),
        ("$.ce", message.content_encoding.as_deref()),
        (ACK, message.feedback.word()),
    ];
    let system = system.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let application = message.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    format!("devices/{device}/messages/devicebound/{}", encode_bag(system.chain(application)))
}

/// Read a cloud-to-device message as `device` gets it; `None` for any other topic, or a bag that is not UTF-8 once
/// decoded. System properties that are not of [`CloudMessage`], or cannot be read, are left out.
pub fn parse_cloud_message(device: &DeviceId, topic: &str, body: Vec<u8>) -> Option<CloudMessage> {
    let mut message = CloudMessage { body, ..CloudMessage::default() };
    for (name, value) in decode_bag(device_bound_bag(device, topic)?)? {
        match name.as_str() {
            "$.mid" => message.message_id = Some(value),
            "$.cid" => message.correlation_id = Some(value),
            "$.uid" => message.user_id = Some(value),
            "$.exp" => message.expiry = expiry(&value),
            "$.ct" => message.content_type = Some(value),
            "$.ce" => message.content_encoding = Some(value),
            ACK => message.feedback = Feedback::parse(&value).unwrap_or_default(),
            name if name.starts_with("$.") => {}
            _ => message.properties.push((name, value)),
        }
    }
    Some(message)
}

/// To the millisecond.
fn expiry(text: &str) -> Option<DateTime<Utc>> {
    time::parse(text).map(|time| time.trunc_subsecs(3))
}

/// Whether `topic` is that of a cloud-to-device message for `device`, readable or not.
pub fn is_cloud_message(device: &DeviceId, topic: &str) -> bool {
    device_bound_bag(device, topic).is_some()
}

fn device_bound_bag<'a>(device: &DeviceId, topic: &'a str) -> Option<&'a str> {
    let rest = topic.strip_prefix("devices/")?.strip_prefix(device.as_str())?;
    let bag = rest.strip_prefix("/messages/devicebound")?;
    if bag.is_empty() { Some(bag) } else { bag.strip_prefix('/').map(|bag| bag.trim_end_matches('/')) }
}

impl Feedback {
    /// The value of `iothub-ack`.
    pub fn parse(word: &str) -> Option<Feedback> {
        match word {
            "none" => Some(Feedback::None),
            "positive" => Some(Feedback::Positive),
            "negative" => Some(Feedback::Negative),
            "full" => Some(Feedback::Full),
            _ => None,
        }
    }

    /// `None` means by itself what `none` says.
    pub(crate) fn word(self) -> Option<&'static str> {
        match self {
            Feedback::None => None,
            Feedback::Positive => Some("positive"),
            Feedback::Negative => Some("negative"),
            Feedback::Full => Some("full"),
        }
    }
}

/// The one property without `$.` that the hub reads.
const ACK: &str = "iothub-ack";

/// `name=value&name=value`, percent-encoded.
pub fn encode_bag<'a>(properties: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut bag = String::new();
    for (name, value) in properties {
        if !bag.is_empty() {
            bag.push('&');
        }
        bag.extend(utf8_percent_encode(name, BAG_KEPT));
        bag.push('=');
        bag.extend(utf8_percent_encode(value, BAG_KEPT));
    }
    bag
}

/// The properties of a bag in their order; a name without `=` has the empty value. `None` if it is not UTF-8 once
/// decoded.
pub fn decode_bag(bag: &str) -> Option<Vec<(String, String)>> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
    bag.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| Some((decode(name)?, decode(value)?)))
        .collect()
}

/// A topic's `a=b&c=d` part.
struct Parameters<'a>(&'a str);

impl<'a> Parameters<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceId {
        DeviceId::parse("d1").expect("an id")
    }

    fn address(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    fn rid(text: &str) -> RequestId {
        RequestId::parse(text).expect("a request id")
    }

    #[test]
    fn what_devices_publish_is_read_and_written() {
        for (topic, expected) in [
            ("$iothub/twin/GET/?$rid=1", FromDevice::TwinGet { rid: rid("1") }),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=a-b",
                FromDevice::ReportedPatch { rid: rid("a-b"), version: None },
            ),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=2&$version=7",
                FromDevice::ReportedPatch { rid: rid("2"), version: Some(7) },
            ),
            ("$iothub/methods/res/200/?$rid=1", FromDevice::MethodResponse { status: 200, rid: rid("1") }),
            ("$iothub/methods/res/-3/?$rid=1", FromDevice::MethodResponse { status: -3, rid: rid("1") }),
            ("devices/d1/messages/events/%24.mid=1&a=b", FromDevice::Telemetry { bag: "%24.mid=1&a=b".into() }),
            ("devices/d1/messages/events/", FromDevice::Telemetry { bag: String::new() }),
        ] {
            let parsed = FromDevice::parse(&address("d1"), topic);
            assert_eq!(parsed.as_ref(), Some(&expected), "{topic}");
            assert_eq!(expected.format(&address("d1")), topic);
        }
    }

    #[test]
    fn a_module_has_topics_of_its_own_below_its_devices() {
        let (device, module) = (address("d1"), address("d1/m1"));
        let topic = "devices/d1/modules/m1/messages/events/%24.on=out";
        let output = FromDevice::Telemetry { bag: "%24.on=out".into() };
        assert_eq!(FromDevice::parse(&module, topic).as_ref(), Some(&output));
        assert_eq!(
            FromDevice::parse(&module, &format!("{topic}/")).as_ref(),
            Some(&output),
            "as the Node SDK sends it"
        );
        assert_eq!(output.format(&module), topic);
        for (sender, topic) in [
            (&device, topic),
            (&module, "devices/d1/messages/events/"),
            (&module, "devices/d1/modules/m2/messages/events/"),
            (&module, "devices/d1/modules/m11/messages/events/"),
        ] {
            assert_eq!(FromDevice::parse(sender, topic), None, "{sender} {topic}");
        }
    }

    #[test]
    fn other_topics_are_not_the_devices() {
        for topic in [
            "devices/d2/messages/events/",
            "devices/d11/messages/events/",
            "devices/d1/messages/eventsx",
            "$iothub/twin/GET/",
            "$iothub/twin/GET/?rid=1",
            "$iothub/methods/res/ok/?$rid=1",
            "$iothub/methods/POST/x/?$rid=1",
            "hello",
            "",
        ] {
            assert_eq!(FromDevice::parse(&address("d1"), topic), None, "{topic}");
        }
    }

    #[test]
    fn what_the_hub_publishes_is_read_and_written() {
        for (topic, expected) in [
            (
                "$iothub/methods/POST/lockDoor/?$rid=1",
                ToDevice::Method { name: MethodName::parse("lockDoor").expect("a name"), rid: rid("1") },
            ),
            (
                "$iothub/methods/POST/50%25%2B1/?$rid=1",
                ToDevice::Method { name: MethodName::parse("50%+1").expect("a name"), rid: rid("1") },
            ),
            (
                "$iothub/twin/res/204/?$rid=1&$version=6",
                ToDevice::TwinResponse { status: 204, rid: rid("1"), version: Some(6) },
            ),
            ("$iothub/twin/res/200/?$rid=x", ToDevice::TwinResponse { status: 200, rid: rid("x"), version: None }),
            ("$iothub/twin/PATCH/properties/desired/?$version=5", ToDevice::Desired { version: 5 }),
        ] {
            assert_eq!(ToDevice::parse(topic).as_ref(), Some(&expected), "{topic}");
            assert_eq!(expected.format(), topic);
        }
    }

    #[test]
    fn a_cloud_to_device_message_is_read_and_written() {
        let topic = "devices/d1/messages/devicebound/%24.mid=m1&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound\
                     &%24.cid=c1&%24.uid=ops&%24.exp=2026-11-24T08%3A40%3A04.171Z&%24.ct=application%2Fjson\
                     &%24.ce=utf-8&iothub-ack=full&prop1=a%20string";
        let message = CloudMessage {
            message_id: Some("m1".into()),
            correlation_id: Some("c1".into()),
            user_id: Some("ops".into()),
            expiry: time::parse("2026-11-24T08:40:04.171Z"),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            feedback: Feedback::Full,
            properties: vec![("prop1".into(), "a string".into())],
            body: b"{}".to_vec(),
        };
        assert_eq!(parse_cloud_message(&device(), topic, b"{}".to_vec()).as_ref(), Some(&message));
        assert_eq!(cloud_message_topic(&device(), &message), topic);
    }

    #[test]
    fn a_cloud_to_device_message_need_not_be_well_made() {
        let read =
            |bag: &str| parse_cloud_message(&device(), &format!("devices/d1/messages/devicebound{bag}"), b"x".to_vec());
        let plain = CloudMessage { body: b"x".to_vec(), ..CloudMessage::default() };
        for bag in ["", "/", "/%24.exp=tomorrow&%24.new=1&iothub-ack=loud", "/iothub-ack=none/"] {
            assert_eq!(read(bag).as_ref(), Some(&plain), "{bag}");
        }
        for (text, time) in [("0000-01-01T00:30:00%2B01:00", None), ("2026-11-24T08:40:04.17199Z", Some(171))] {
            let expiry = read(&format!("/%24.exp={text}")).expect("a message").expiry;
            assert_eq!(expiry.map(|expiry| expiry.timestamp_subsec_millis()), time, "{text}");
        }
        let bare = CloudMessage { properties: vec![("a".into(), String::new())], ..plain };
        assert_eq!(read("/a"), Some(bare), "a name alone has the empty value");
        assert_eq!(read("/a=%ff"), None);
        assert!(is_cloud_message(&device(), "devices/d1/messages/devicebound/a=%ff"));
        for topic in
            ["devices/d2/messages/devicebound/", "devices/d1/messages/devicebounds", "devices/d1/messages/events/"]
        {
            assert_eq!(parse_cloud_message(&device(), topic, Vec::new()), None, "{topic}");
            assert!(!is_cloud_message(&device(), topic), "{topic}");
        }
    }

    #[test]
    fn a_bag_survives_odd_names_and_values() {
        let properties = [("$.mid", "id 1"), ("a b", "c/d"), ("plus+hash#", "é&=?%")];
        let bag = encode_bag(properties.into_iter());
        assert!(!bag.contains(['+', '#', ' ', '/']), "{bag}");
        assert!(bag.starts_with("%24.mid=id%201&"), "{bag}");
        let decoded = decode_bag(&bag).expect("a bag");
        assert_eq!(decoded, properties.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(decode_bag("a&b="), Some(vec![("a".into(), "".into()), ("b".into(), "".into())]));
        assert_eq!(decode_bag("a=%ff"), None);
    }

    #[test]
    fn filters_are_matched_whole() {
        for (subscriber, other) in [("d1", Subscription::Inputs), ("d1/m1", Subscription::DeviceBound)] {
            let subscriber = address(subscriber);
            for subscription in Subscription::ALL {
                let filter = subscription.filter(&subscriber);
                assert_eq!(filter.is_none(), subscription == other, "{subscriber} {filter:?}");
                let parsed = filter.and_then(|filter| Subscription::parse(&subscriber, &filter));
                assert_eq!(parsed, Some(subscription).filter(|subscription| *subscription != other));
            }
        }
        for filter in ["#", "$iothub/#", "devices/d2/messages/devicebound/#", "$iothub/twin/res/+", "devices/d1/#"] {
            assert_eq!(Subscription::parse(&address("d1"), filter), None, "{filter}");
        }
        let parse = |filter: &str| Subscription::parse(&address("d1/m1"), filter);
        assert_eq!(parse("devices/d1/modules/m1/#"), Some(Subscription::Inputs));
        for filter in ["devices/d1/#", "devices/d1/messages/devicebound/#", "devices/d1/modules/m2/inputs/#"] {
            assert_eq!(parse(filter), None, "{filter}");
        }
    }
}
