// Answers the direct method `hello`, and counts how often it was asked.

import * as state from "iothub:device/state@0.1.0";
import { report } from "iothub:device/twin@0.1.0";

export const methods = {
  names: () => ["hello"],

  call({ payload }) {
    const name = JSON.parse(payload)?.name;
    if (typeof name !== "string") return answer(400, { error: 'the payload must be {"name": "…"}' });
    const count = kept() + 1;
    // The host keeps all that a call changes, or nothing if it throws.
    state.set("count", new TextEncoder().encode(String(count)));
    report(JSON.stringify({ "{{name}}": { count } }));
    return answer(200, { text: `hello, ${name}`, count });
  },
};

// Globals are no place to keep it: an instance may be dropped between any two calls.
function kept() {
  const bytes = state.get("count");
  return bytes == null ? 0 : Number(new TextDecoder().decode(new Uint8Array(bytes)));
}

function answer(status, payload) {
  return { status, payload: JSON.stringify(payload) };
}
