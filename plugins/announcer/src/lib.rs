//! A loudspeaker: says what a back end tells it in a message, and passes it on to the loudspeakers beside it.
//!
//! Who is beside it is a setting, `beside`, with the ids of devices of the same host, separated by spaces. The plugin
//! must be granted to send messages to them:
//!
//! ```toml
//! [plugins.announcer]
//! config = { beside = "hall-2 hall-3" }
//! grants = { peers = ["hall-*"] }
//! ```
//!
//! Messages come at least once, so what the plugin keeps is what it said last, and not a list to which a repetition
//! would add.

use exports::iothub::plugin::messages::{Guest, Message, Source, Verdict};
use iothub::device::{config, log, peers, twin};
use serde_json::{Value, json};

wit_bindgen::generate!({
    path: ["../../wit/device", "../../wit/plugin"],
    world: "iothub:plugin/peer-handler@0.1.0",
    generate_all,
});

/// Whoever says more wants to be read, not heard.
const LONGEST: usize = 200;

struct Announcer;

export!(Announcer);

impl Guest for Announcer {
    fn received(message: Message) -> Verdict {
        if is_muted() {
            // The hub keeps the message; the host brings it again, a few times.
            return Verdict::Retry("the loudspeaker is muted".to_owned());
        }
        let text = match String::from_utf8(message.body) {
            Ok(text) if (1..=LONGEST).contains(&text.chars().count()) => text,
            // It would be no better the next time. A device cannot refuse a message, so the twin says why.
            _ => {
                report(&json!({ "refused": format!("an announcement is text of 1 to {LONGEST} characters") }));
                return Verdict::Done;
            }
        };
        let from = match &message.source {
            Source::Cloud => "cloud",
            Source::Peer(device) => device,
        };
        report(&json!({ "said": text, "from": from, "refused": null }));
        // Only what comes from a back end: two loudspeakers that pass on what the other says would never be still.
        if matches!(message.source, Source::Cloud) {
            pass_on(&text);
        }
        Verdict::Done
    }
}

/// As an operator wants it, in the desired properties.
fn is_muted() -> bool {
    let desired: Value = serde_json::from_str(&twin::desired().properties).expect("the host hands over JSON");
    desired["muted"] == true
}

fn report(announcement: &Value) {
    twin::report(&json!({ "announcement": announcement }).to_string()).expect("a short text can be reported");
}

/// The messages leave when the host has recorded what this call did. Whether they arrive, nobody tells.
fn pass_on(text: &str) {
    for device in config::get("beside").iter().flat_map(|beside| beside.split_whitespace()) {
        let message = peers::Message { content_type: None, properties: Vec::new(), body: text.as_bytes().to_vec() };
        if let Err(error) = peers::send(device, &message) {
            log::log(log::Level::Warn, &format!("the announcement is not passed on to {device}: {error:?}"));
        }
    }
}
