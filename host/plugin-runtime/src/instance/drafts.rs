//! Guests that use drafts of WASI.

use std::collections::BTreeMap;

use super::granted::{ALLOCATOR, ANSWER, call};
use super::tests::instance_on;
use super::*;
use crate::terms::Terms;
use crate::testing::Component;

/// Answers with the setting `mode` by `wasi:config`, and their number.
fn config(interface: &str) -> Component {
    let imports = format!(
        r#"{ALLOCATOR}
  (import "{interface}" (instance $config
    (type $errors (variant (case "upstream" string) (case "io" string)))
    (export "error" (type $error (eq $errors)))
    (export "get" (func (param "key" string) (result (result (option string) (error $error)))))
    (export "get-all" (func (result (result (list (tuple string string)) (error $error)))))))
  (core func $get (canon lower (func $config "get") (memory (core memory $libc "memory"))
    (realloc (core func $alloc "realloc"))))
  (core func $all (canon lower (func $config "get-all") (memory (core memory $libc "memory"))
    (realloc (core func $alloc "realloc"))))"#
    );
    let body = format!(
        "(call $all (i32.const 80))
         (i32.store {ANSWER} (i32.load (i32.const 88)))
         (call $get (i32.const 128) (i32.const 4) (i32.const 80))
         (if (i32.load8_u (i32.const 80)) (then unreachable))
         (if (i32.load8_u (i32.const 84))
           (then (i64.store offset=4 align=4 {ANSWER} (i64.load align=4 (i32.const 88)))))
         {ANSWER}"
    );
    Component::method("ask", &body)
        .with("(data (i32.const 128) \"mode\")")
        .importing("get", "(param i32 i32 i32)", "")
        .importing("all", "(param i32)", &imports)
}

#[tokio::test]
async fn settings_are_read_by_the_draft_of_wasi_too() {
    let settings = BTreeMap::from([("mode", "night"), ("z", "")]).into_iter();
    let settings: BTreeMap<_, _> = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    for interface in
        ["wasi:config/store@0.2.0-rc.1", "wasi:config/store@0.2.0-draft", "wasi:config/runtime@0.2.0-draft"]
    {
        let terms = Terms { config: settings.clone(), ..Terms::default() };
        let mut instance = instance_on(config(interface), RuntimeSettings::default(), terms).await;
        assert_eq!(call(&mut instance).await, GuestResponse { status: 2, payload: "night".to_owned() });
        let mut instance = instance_on(config(interface), RuntimeSettings::default(), Terms::default()).await;
        assert_eq!(call(&mut instance).await, GuestResponse { status: 0, payload: String::new() });
    }
}

#[tokio::test]
async fn lines_of_the_draft_of_wasi_go_to_the_log() {
    for interface in ["wasi:logging/logging@0.1.0-draft", "wasi:logging/logging"] {
        let imports = format!(
            r#"
  (import "{interface}" (instance $logging
    (type $levels (enum "trace" "debug" "info" "warn" "error" "critical"))
    (export "level" (type $level (eq $levels)))
    (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))))
  (core func $log (canon lower (func $logging "log") (memory (core memory $libc "memory"))))"#
        );
        let body = format!(
            "(call $log (i32.const 5) (i32.const 64) (i32.const 3) (i32.const 64) (i32.const 3))
             (call $log (i32.const 0) (i32.const 64) (i32.const 0) (i32.const 64) (i32.const 3)) {ANSWER}"
        );
        let component = Component::method("ask", &body).importing("log", "(param i32 i32 i32 i32 i32)", &imports);
        let mut instance = instance_on(component, RuntimeSettings::default(), Terms::default()).await;
        call(&mut instance).await;
        assert_eq!(instance.store.data().output.lines_said(), 2);
    }
}
