//! Guests that want too much of everything.

use std::time::Duration;

use super::tests::{SHORT, fail, hang, instance, instance_on};
use super::*;
use crate::settings::CallLimits;
use crate::terms::Terms;
use crate::testing::{Component, name, snapshot};
use crate::version::LoadError;

/// Answers with `length` bytes of zeroes.
fn answering(length: usize) -> Component {
    let body = format!(
        "(drop (memory.grow (i32.const 800)))
         (i32.store (i32.const 32) (i32.const 200))
         (i32.store (i32.const 36) (i32.const 8192))
         (i32.store (i32.const 40) (i32.const {length}))
         (i32.const 32)"
    );
    Component::method("lockDoor", &body)
}

#[tokio::test]
async fn endless_recursion_is_a_trap() {
    let deep = "(func $deep (result i32) (i32.add (call $deep) (call $deep)))";
    let failure = fail(Component::method("lockDoor", "(call $deep)").with(deep)).await;
    assert_eq!(failure.to_string(), "the plugin trapped: call stack exhausted");
}

#[tokio::test]
async fn a_table_grows_no_further_than_the_pool_has_room() {
    // One by one, so that whatever room there is gets used.
    let body = "(loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 1)) (i32.const -1))))
                (if (i32.gt_u (table.size $t) (i32.const 100000)) (then unreachable))
                (i32.store (i32.const 32) (table.size $t))
                (i32.const 32)";
    let mut instance = instance(Component::method("lockDoor", body).with("(table $t 1 funcref)")).await;
    let (response, _) = instance.call_method(snapshot(), &name("lockDoor"), "1").await.expect("an answer");
    assert!(response.status > 1, "{response:?}");
}

#[tokio::test]
async fn a_table_over_the_limit_of_memory_is_named() {
    let body = "(drop (table.grow $t (ref.null func) (i32.const 100000000))) unreachable";
    let failure = fail(Component::method("lockDoor", body).with("(table $t 1 funcref)")).await;
    assert!(matches!(failure, CallFailure::Memory { wanted, .. } if wanted > 800_000_000), "{failure}");
}

#[tokio::test]
async fn a_huge_answer_is_not_copied_into_the_host() {
    let mut instance = instance(answering(200 << 10)).await;
    let (response, _) = instance.call_method(snapshot(), &name("lockDoor"), "1").await.expect("an answer");
    assert_eq!(response.payload.len(), 200 << 10);
    let failure = fail(answering(10 << 20)).await;
    assert!(matches!(&failure, CallFailure::Trap { message } if message.contains("fuel")), "{failure}");
}

#[tokio::test]
async fn a_host_can_give_calls_less() {
    let with = |calls| RuntimeSettings { calls, ..RuntimeSettings::default() };
    let small = with(CallLimits { argument: 1 << 10, ..CallLimits::default() });
    let mut short = instance_on(answering(100), small.clone(), Terms::default()).await;
    short.call_method(snapshot(), &name("lockDoor"), "1").await.expect("an answer");
    let mut long = instance_on(answering(2 << 10), small, Terms::default()).await;
    let failure = long.call_method(snapshot(), &name("lockDoor"), "1").await.expect_err("too much");
    assert!(matches!(&failure, CallFailure::Trap { message } if message.contains("fuel")), "{failure}");

    let few = with(CallLimits { handles: 0, ..CallLimits::default() });
    let mut none = instance_on(sleeping("1"), few, Terms::default()).await;
    let failure = none.call_method(snapshot(), &name("lockDoor"), "1").await.expect_err("no handle");
    assert!(matches!(failure, CallFailure::Trap { .. }), "{failure}");
    assert!(failure.to_string().contains("resource table has no free keys"), "{failure}");
}

#[tokio::test]
async fn an_answer_outside_its_memory_is_a_failure() {
    let failure = fail(answering(1 << 30)).await;
    assert!(matches!(failure, CallFailure::Trap { .. }), "{failure}");
}

#[tokio::test]
async fn a_start_that_never_ends_is_refused() {
    let component = Component::echo("lockDoor").with("(func $start (loop $again (br $again))) (start $start)");
    let settings = RuntimeSettings { call_time_limit: Duration::from_millis(100), ..RuntimeSettings::default() };
    let runtime = crate::Runtime::new(settings).expect("a runtime");
    let load = move || runtime.load(crate::testing::source("p", component.wasm()));
    let error = tokio::task::spawn_blocking(load).await.expect("no panic").expect_err("refused");
    assert!(matches!(error, LoadError::SelfTest { failure: CallFailure::Timeout { .. } }), "{error}");
}

/// Waits for so many nanoseconds and then traps.
fn sleeping(nanoseconds: &str) -> Component {
    let imports = r#"
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (export "pollable" (type $waited (eq $pollable)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $waited))))))
  (core func $wait (canon lower (func $clock "subscribe-duration")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))"#;
    Component::method("lockDoor", &format!("(call $block (call $wait (i64.const {nanoseconds}))) unreachable"))
        .importing("block", "(param i32)", "")
        .importing("wait", "(param i64) (result i32)", imports)
}

#[tokio::test]
async fn a_guest_that_sleeps_is_woken_by_the_limit() {
    assert_eq!(hang(sleeping("0x7fffffffffffffff")).await, CallFailure::Timeout { limit: SHORT });
}

#[tokio::test]
async fn a_guest_that_spins_in_calls_of_the_host_is_ended() {
    let body = "(loop $again (call $delete (i32.const 64) (i32.const 8)) (br $again)) unreachable";
    let failure = hang(Component::method("lockDoor", body)).await;
    assert_eq!(failure, CallFailure::Timeout { limit: SHORT });
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut_and_harms_nobody() {
    let imports = r#"
  (import "iothub:device/log@0.1.0" (instance $log
    (type $levels (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $levels)))
    (export "log" (func (param "level" $level) (param "message" string)))))
  (core func $log (canon lower (func $log "log") (memory (core memory $libc "memory"))))"#;
    let body = "(local $n i32)
        (loop $again
          (call $log (i32.const 2) (i32.const 8192) (i32.const 65536))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $again (i32.lt_u (local.get $n) (i32.const 1000))))
        (i32.store (i32.const 32) (i32.const 200))
        (i32.const 32)";
    let component = Component::method("lockDoor", body).importing("log", "(param i32 i32 i32)", imports);
    let mut instance = instance(component).await;
    let (response, effects) = instance.call_method(snapshot(), &name("lockDoor"), "1").await.expect("an answer");
    assert_eq!((response.status, effects.is_empty()), (200, true));
    assert_eq!(instance.store.data().output.lines_said(), 1000);
}

#[tokio::test]
async fn a_panic_of_the_host_ends_the_call_only() {
    let outcome: Outcome<()> = in_time(Duration::from_secs(5), pin!(async { panic!("a fault of ours") })).await;
    let error = outcome.expect("in time").expect_err("a panic");
    assert!(error.to_string().contains("panicked"), "{error}");
}
