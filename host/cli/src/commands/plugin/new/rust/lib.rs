//! Answers the direct method `hello`, and counts how often it was asked.

use exports::iothub::plugin::methods::{Guest, Request, Response};
use iothub::device::{state, twin};
use serde_json::{Value, json};

wit_bindgen::generate!({
    path: "wit",
    world: "method-handler",
    generate_all,
});

struct Plugin;

export!(Plugin);

impl Guest for Plugin {
    fn names() -> Vec<String> {
        vec!["hello".to_owned()]
    }

    fn call(request: Request) -> Response {
        let payload: Value = serde_json::from_str(&request.payload).expect("the host hands over JSON");
        let Some(name) = payload["name"].as_str() else {
            return answer(400, &json!({ "error": r#"the payload must be {"name": "…"}"# }));
        };
        let count = count() + 1;
        // The host keeps all that a call changes, or nothing if it panics.
        state::set("count", count.to_string().as_bytes()).expect("a number fits into the state");
        twin::report(&json!({ "{{name}}": { "count": count } }).to_string()).expect("a small object can be reported");
        answer(200, &json!({ "text": format!("hello, {name}"), "count": count }))
    }
}

/// Globals are no place to keep it: an instance may be dropped between any two calls.
fn count() -> u64 {
    let kept = state::get("count").unwrap_or_default();
    String::from_utf8(kept).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn answer(status: i32, payload: &Value) -> Response {
    Response { status, payload: payload.to_string() }
}
