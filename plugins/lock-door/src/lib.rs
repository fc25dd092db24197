//! A door's lock: answers the direct methods `lockDoor` and `unlockDoor`.
//!
//! This file is everything that talks to the host; the rules of a door are in `door.rs` and know
//! nothing of it. To write a plugin of your own, copy this folder and change both.

mod door;

use door::{Door, Move};
use exports::iothub::plugin::methods::{Guest, Request, Response};
use iothub::device::{log, state, telemetry, twin};
use serde::Serialize;
use serde_json::json;

wit_bindgen::generate!({
    path: ["../../wit/device", "../../wit/plugin"],
    world: "iothub:plugin/method-handler@0.1.0",
    generate_all,
});

const VERSION: &str = if cfg!(feature = "v2") { "2.0.0" } else { env!("CARGO_PKG_VERSION") };

/// Where the door is kept, one JSON document. The host owns this memory: it outlives this instance,
/// a restart of the host and a swap to another version of this plugin.
const DOOR: &str = "door";

struct LockDoor;

export!(LockDoor);

impl Guest for LockDoor {
    fn names() -> Vec<String> {
        vec!["lockDoor".to_owned(), "unlockDoor".to_owned()]
    }

    fn call(request: Request) -> Response {
        let locked = request.name == "lockDoor";
        let by = match door::mover(&request.payload) {
            Ok(by) => by,
            Err(reason) => return answer(400, &json!({ "error": reason })),
        };
        let mut door = load();
        match door.turn(locked, by) {
            Move::Moved => {
                announce(&door);
                answer(200, &body(&door))
            }
            Move::AlreadyThere => answer(409, &body(&door)),
        }
    }
}

/// The door as earlier calls left it. One that has never moved is unlocked.
fn load() -> Door {
    match state::get(DOOR) {
        Some(bytes) => serde_json::from_slice(&bytes).expect("only this plugin writes its state"),
        None => Door::default(),
    }
}

/// Keeps the moved door and tells the world. The host takes all of it or nothing: if this call
/// panicked below, the door would not have moved and the caller would get an error.
fn announce(door: &Door) {
    let kept = serde_json::to_vec(door).expect("a door is plain data");
    state::set(DOOR, &kept).expect("a door fits into the state");
    let reported = json!({ "door": { "locked": door.locked } });
    twin::report(&reported.to_string()).expect("a small object can be reported");

    let event = json!({ "event": "doorMoved", "locked": door.locked, "by": door.moved_by, "count": door.count });
    let message = telemetry::Message {
        body: event.to_string().into_bytes(),
        content_type: Some("application/json".to_owned()),
        properties: vec![("event".to_owned(), "doorMoved".to_owned())],
    };
    // A full queue is no reason to leave a door open.
    if let Err(error) = telemetry::send(&message) {
        log::log(log::Level::Warn, &format!("the door moved, but its event was not sent: {error:?}"));
    }
}

/// What a caller is told. In the order of the names, as this plugin in other languages writes it too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    count: u64,
    /// Since 2.0.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_moved_by: Option<&'a Option<String>>,
    locked: bool,
    version: &'static str,
}

fn body(door: &Door) -> Body<'_> {
    let last_moved_by = cfg!(feature = "v2").then_some(&door.moved_by);
    Body { count: door.count, last_moved_by, locked: door.locked, version: VERSION }
}

fn answer(status: i32, payload: &impl Serialize) -> Response {
    Response { status, payload: serde_json::to_string(payload).expect("plain data") }
}
