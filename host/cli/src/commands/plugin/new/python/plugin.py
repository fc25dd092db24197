"""Answers the direct method `hello`, and counts how often it was asked."""

import json

from wit_world import exports
from wit_world.exports.methods import Request, Response
from wit_world.imports import state, twin


class Methods(exports.Methods):
    def names(self) -> list[str]:
        return ["hello"]

    def call(self, request: Request) -> Response:
        payload = json.loads(request.payload)
        name = payload.get("name") if isinstance(payload, dict) else None
        if not isinstance(name, str):
            return Response(400, json.dumps({"error": 'the payload must be {"name": "…"}'}))
        count = kept() + 1
        # The host keeps all that a call changes, or nothing if it raises.
        state.set("count", str(count).encode())
        twin.report(json.dumps({"{{name}}": {"count": count}}))
        return Response(200, json.dumps({"text": f"hello, {name}", "count": count}))


def kept() -> int:
    """Globals are no place to keep it: an instance may be dropped between any two calls."""
    value = state.get("count")
    return 0 if value is None else int(value)
