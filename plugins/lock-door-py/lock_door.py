"""A door's lock: answers the direct methods `lockDoor` and `unlockDoor`.

Does what `../lock-door`, the plugin in Rust, does in its version 1.0.0, and keeps its state in the same form: either
can take over from the other on a running host. `latch plugin test ../lock-door/tests` holds both to that.
"""

import json
from typing import Any, Optional

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.methods import Request, Response
from wit_world.imports import log, state, telemetry, twin

VERSION = "1.0.0"

# Where the door is kept, one JSON document. The host owns this memory: it outlives this instance, a restart of the
# host and a swap to another version of this plugin.
DOOR = "door"

# A name longer than this is a mistake, and the state that keeps it is small.
LONGEST_NAME = 64


class Methods(exports.Methods):
    def names(self) -> list[str]:
        return ["lockDoor", "unlockDoor"]

    def call(self, request: Request) -> Response:
        locked = request.name == "lockDoor"
        try:
            by = mover(request.payload)
        except ValueError as error:
            return answer(400, {"error": str(error)})
        door = load()
        if door["locked"] == locked:
            return answer(409, body(door))
        moved = {"locked": locked, "count": door["count"] + 1, "moved_by": by}
        announce(moved)
        return answer(200, body(moved))


def mover(text: str) -> Optional[str]:
    """Who asks, from a method's payload: `null` (nobody in particular) or `{"by": "name"}`."""
    try:
        payload = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the payload is not JSON: {error}") from error
    if payload is None:
        return None
    if isinstance(payload, dict) and payload.keys() == {"by"} and is_name(payload["by"]):
        return payload["by"]
    raise ValueError(f'the payload must be null or {{"by": "name"}}, a name of 1 to {LONGEST_NAME} characters')


def is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= LONGEST_NAME


def load() -> dict[str, Any]:
    """The door as earlier calls left it. One that has never moved is unlocked."""
    kept = state.get(DOOR)
    if kept is None:
        return {"locked": False, "count": 0, "moved_by": None}
    return json.loads(kept)


def announce(door: dict[str, Any]) -> None:
    """Keeps the moved door and tells the world.

    The host takes all of it or nothing: if this call failed below, the door would not have moved and the caller would
    get an error.
    """
    state.set(DOOR, encode(door).encode())
    twin.report(encode({"door": {"locked": door["locked"]}}))
    event = {"by": door["moved_by"], "count": door["count"], "event": "doorMoved", "locked": door["locked"]}
    message = telemetry.Message(encode(event).encode(), "application/json", [("event", "doorMoved")])
    try:
        telemetry.send(message)
    except Err as error:
        # A full queue is no reason to leave a door open.
        log.log(log.Level.WARN, f"the door moved, but its event was not sent: {error.value}")


def body(door: dict[str, Any]) -> dict[str, Any]:
    """The members in the order in which the plugin in Rust writes them."""
    return {"count": door["count"], "locked": door["locked"], "version": VERSION}


def answer(status: int, payload: dict[str, Any]) -> Response:
    return Response(status, encode(payload))


def encode(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
