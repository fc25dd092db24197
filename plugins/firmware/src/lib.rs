//! A firmware update: the direct method `firmwareUpdate` answers at once, and the device goes on by
//! itself for as long as it takes, reporting each step in its twin. `reboot` does the same.
//!
//! The idea is the timer: its payload says how far the task has come, and the host keeps it. If the
//! host is killed midway, the timer fires after the next start and the task goes on from there.
//! This file is everything that talks to the host; the steps are in `task.rs`. A real device would
//! begin its download where a step begins, and look after it in the next.

mod task;

use exports::iothub::plugin::methods::{self, Request, Response};
use exports::iothub::plugin::ticks::{self, Timer, Verdict};
use iothub::device::timers::{self, When};
use iothub::device::{log, twin};
use serde_json::{Value, json};
use task::Task;

wit_bindgen::generate!({
    path: ["../../wit/device", "../../wit/plugin"],
    world: "iothub:plugin/timed-handler@0.1.0",
    generate_all,
});

/// The only timer, so a device does one thing at a time.
const TASK: &str = "task";

struct Firmware;

export!(Firmware);

impl methods::Guest for Firmware {
    fn names() -> Vec<String> {
        vec!["firmwareUpdate".to_owned(), "reboot".to_owned()]
    }

    fn call(request: Request) -> Response {
        let task = match Task::asked(&request.name, &request.payload) {
            Ok(task) => task,
            Err(reason) => return answer(400, &json!({ "error": reason })),
        };
        if timers::pending().iter().any(|timer| timer.name == TASK) {
            return answer(409, &json!({ "error": "the device is updating or rebooting already" }));
        }
        match begin(&task, When::After) {
            Ok(()) => answer(202, &task.report()),
            Err(reason) => answer(500, &json!({ "error": reason })),
        }
    }
}

impl ticks::Guest for Firmware {
    fn fired(timer: Timer) -> Verdict {
        let task: Task = serde_json::from_slice(&timer.payload).expect("only this plugin sets its timers");
        // Counted from when this step should have begun, so that small delays do not add up.
        match begin(&task, |takes| When::At(timer.due + takes)) {
            Ok(()) => Verdict::Done,
            // The host undoes the whole call and brings the timer again.
            Err(reason) => Verdict::Retry(reason),
        }
    }
}

/// Begins a step: reports it, and sets the timer for the next one, `when` this one is over. The host
/// keeps both or, if this call fails, neither; so what is reported is where the task goes on.
fn begin(task: &Task, when: impl FnOnce(u64) -> When) -> Result<(), String> {
    let report = task.report().to_string();
    twin::report(&report).map_err(|error| format!("not reported: {error:?}"))?;
    log::log(log::Level::Info, &report);
    if let Some(takes) = task.takes() {
        let next = serde_json::to_vec(&task.clone().next()).expect("a task is plain data");
        timers::set(TASK, when(takes), &next).map_err(|error| format!("no timer: {error:?}"))?;
    }
    Ok(())
}

fn answer(status: i32, payload: &Value) -> Response {
    Response { status, payload: payload.to_string() }
}
