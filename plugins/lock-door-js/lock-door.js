// A door's lock: answers the direct methods `lockDoor` and `unlockDoor`.
//
// Does what `../lock-door`, the plugin in Rust, does in its version 1.0.0, and keeps its state in the same form: either
// can take over from the other on a running host. `latch plugin test ../lock-door/tests` holds both to that.

import { log } from "iothub:device/log@0.1.0";
import * as state from "iothub:device/state@0.1.0";
import { send } from "iothub:device/telemetry@0.1.0";
import { report } from "iothub:device/twin@0.1.0";

const VERSION = "1.0.0";

// Where the door is kept, one JSON document. The host owns this memory: it outlives this instance, a restart of the
// host and a swap to another version of this plugin.
const DOOR = "door";

// A name longer than this is a mistake, and the state that keeps it is small.
const LONGEST_NAME = 64;

export const methods = {
  names: () => ["lockDoor", "unlockDoor"],

  call({ name, payload }) {
    const locked = name === "lockDoor";
    let by;
    try {
      by = mover(payload);
    } catch (error) {
      return answer(400, { error: error.message });
    }
    const door = load();
    if (door.locked === locked) return answer(409, body(door));
    const moved = { locked, count: door.count + 1, moved_by: by };
    announce(moved);
    return answer(200, body(moved));
  },
};

// Who asks, from a method's payload: `null` (nobody in particular) or `{"by": "name"}`.
function mover(text) {
  let payload;
  try {
    payload = JSON.parse(text);
  } catch (error) {
    throw new Error(`the payload is not JSON: ${error.message}`);
  }
  if (payload === null) return null;
  if (typeof payload === "object" && Object.keys(payload).join() === "by" && isName(payload.by)) return payload.by;
  throw new Error(`the payload must be null or {"by": "name"}, a name of 1 to ${LONGEST_NAME} characters`);
}

function isName(value) {
  if (typeof value !== "string") return false;
  // Characters, where `length` would count the halves of some.
  const length = [...value].length;
  return length >= 1 && length <= LONGEST_NAME;
}

// The door as earlier calls left it. One that has never moved is unlocked.
function load() {
  const kept = state.get(DOOR);
  if (kept == null) return { locked: false, count: 0, moved_by: null };
  return JSON.parse(new TextDecoder().decode(new Uint8Array(kept)));
}

// Keeps the moved door and tells the world. The host takes all of it or nothing: if this call failed below, the door
// would not have moved and the caller would get an error.
function announce(door) {
  state.set(DOOR, encode(door));
  report(JSON.stringify({ door: { locked: door.locked } }));
  const event = { by: door.moved_by, count: door.count, event: "doorMoved", locked: door.locked };
  const message = { body: encode(event), contentType: "application/json", properties: [["event", "doorMoved"]] };
  try {
    send(message);
  } catch (error) {
    // A full queue is no reason to leave a door open.
    log("warn", `the door moved, but its event was not sent: ${JSON.stringify(error)}`);
  }
}

// The members in the order in which the plugin in Rust writes them.
function body(door) {
  return { count: door.count, locked: door.locked, version: VERSION };
}

function answer(status, payload) {
  return { status, payload: JSON.stringify(payload) };
}

function encode(value) {
  return new TextEncoder().encode(JSON.stringify(value));
}
