//! Where a device stands: takes the desired properties `building` and `floor`, and answers each in
//! the reported properties, accepted or not.
//!
//! The answer has the form of IoT Plug and Play's writable properties: `value` is what is in
//! force, `ac` a status as in HTTP, `av` the desired version that it answers, `ad` words for people.
//! Whoever runs the host can say how high the house is, by the setting `highest-floor`. This file is everything that talks to the host; what a property may be is in `property.rs`.

mod property;

use exports::iothub::plugin::reactions::{Change, Guest, Verdict};
use iothub::device::{config, log, state, twin};
use property::{HIGHEST_FLOOR, PROPERTIES, Property, Site};
use serde_json::{Map, Value, json};

wit_bindgen::generate!({
    path: ["../../wit/device", "../../wit/plugin"],
    world: "iothub:plugin/twin-reactor@0.1.0",
    generate_all,
});

struct Building;

export!(Building);

impl Guest for Building {
    fn watched() -> Vec<String> {
        PROPERTIES.iter().map(|property| property.name.to_owned()).collect()
    }

    fn changed(change: Change) -> Verdict {
        match react(&change) {
            Ok(summary) => {
                log::log(log::Level::Info, &format!("desired version {}: {summary}", change.version));
                Verdict::Done
            }
            // The host undoes the whole call and brings the change again.
            Err(reason) => Verdict::Retry(reason),
        }
    }
}

/// Acts on every property that the patch names, reports on each, and sums up for the log.
fn react(change: &Change) -> Result<String, String> {
    let patch: Map<String, Value> =
        serde_json::from_str(&change.patch).map_err(|error| format!("the patch is no object: {error}"))?;
    let mut reported = Map::new();
    let mut summary = Vec::new();
    for property in PROPERTIES {
        if let Some(desired) = patch.get(property.name) {
            let (code, words) = take(property, desired)?;
            let acknowledgement = json!({ "value": in_force(property), "ac": code, "av": change.version, "ad": words });
            reported.insert(property.name.to_owned(), acknowledgement);
            summary.push(words);
        }
    }
    if reported.is_empty() {
        return Ok("nothing for us".to_owned());
    }
    twin::report(&Value::Object(reported).to_string()).map_err(|error| format!("not reported: {error:?}"))?;
    Ok(summary.join(", "))
}

/// Puts one desired value into force if it makes sense, and says how that went. A real device
/// would move its furniture here.
fn take(property: &Property, desired: &Value) -> Result<(u16, String), String> {
    if desired.is_null() {
        state::delete(property.name);
        return Ok((200, format!("{} removed", property.name)));
    }
    if let Err(reason) = property.check(desired, site()) {
        return Ok((400, reason));
    }
    state::set(property.name, desired.to_string().as_bytes()).map_err(|error| format!("not kept: {error:?}"))?;
    Ok((200, format!("{} is now {desired}", property.name)))
}

/// Settings come as text. One that makes no sense is as good as none, and says so.
fn site() -> Site {
    let setting = config::get("highest-floor");
    let highest_floor = setting.as_ref().and_then(|text| text.parse().ok());
    if setting.is_some() && highest_floor.is_none() {
        log::log(log::Level::Warn, "the setting highest-floor is no whole number");
    }
    Site { highest_floor: highest_floor.unwrap_or(HIGHEST_FLOOR) }
}

/// The value in force; `null` if there is none, which leaves `value` out of the reported properties.
fn in_force(property: &Property) -> Value {
    match state::get(property.name) {
        Some(kept) => serde_json::from_slice(&kept).expect("only this plugin writes its state"),
        None => Value::Null,
    }
}
