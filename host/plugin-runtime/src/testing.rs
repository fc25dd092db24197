//! Components for tests, written by hand so that no toolchain is needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use iothub_protocol::id::{DeviceId, MethodName};
use serde_json::Map;

use crate::{PluginName, PluginSource, Runtime, RuntimeSettings, Snapshot, Terms};

/// A small plugin in text form.
pub(crate) struct Component {
    text: String,
}

impl Component {
    /// Answers `method` with status 200 and the payload, and deletes the state that the payload names.
    pub(crate) fn echo(method: &str) -> Component {
        let body = "
            (call $delete (local.get $payload) (local.get $payload_len))
            (i32.store (i32.const 32) (i32.const 200))
            (i32.store (i32.const 36) (local.get $payload))
            (i32.store (i32.const 40) (local.get $payload_len))
            (i32.const 32)";
        Component::method(method, body)
    }

    /// Answers `method` by running `body`.
    pub(crate) fn method(method: &str, body: &str) -> Component {
        let length = format!("\\{:02x}\\00\\00\\00", method.len());
        let text = TEXT.replace(";; methods", METHODS);
        let text = text.replace("METHOD_LENGTH", &length).replace("METHOD", method).replace("BODY", body);
        Component { text }
    }

    /// Also reacts to `path`: done if the patch is empty, else retry with the patch as the reason.
    pub(crate) fn reacting(self, path: &str) -> Component {
        let length = format!("\\{:02x}\\00\\00\\00", path.len());
        let reactions = REACTIONS.replace("PATH_LENGTH", &length).replace("PATH", path);
        self.replace(";; more", &format!("{reactions}\n$0"))
    }

    /// Also deals with messages: done if the body is empty; else retry with the body as the reason, or, from a peer,
    /// with the text `from ` and its id.
    pub(crate) fn messaging(self) -> Component {
        self.replace(";; more", &format!("{MESSAGES}\n$0"))
    }

    /// Also deals with timers: sets the timer again that fired, for 7 ms after 1970, if it has no payload; else retry
    /// with the payload as the reason.
    pub(crate) fn ticking(self) -> Component {
        self.replace(";; more", &format!("{TICKS}\n$0"))
    }

    /// Also wants to be told when it takes over, with state format 7: refuses with the label of the version before, if
    /// there is one of another format.
    pub(crate) fn living(self) -> Component {
        self.replace(";; more", &format!("{LIFECYCLE}\n$0"))
    }

    /// With more definitions in its core module.
    pub(crate) fn with(self, definitions: &str) -> Component {
        self.replace("(func (export \"names\")", &format!("{definitions}\n$0"))
    }

    /// Its core module imports `function` as `$name` with one more part of `host`; `imports` define it outside.
    pub(crate) fn importing(self, name: &str, function: &str, imports: &str) -> Component {
        let import = format!("(import \"host\" \"{name}\" (func ${name} {function}))\n$0");
        let given = format!("$0\n(export \"{name}\" (func ${name}))");
        self.replace("(core module $guest", &format!("{imports}\n$0"))
            .replace("(data (i32.const 0)", &import)
            .replace("(export \"delete\" (func $delete))", &given)
    }

    /// With `from` in its text replaced by `to`, in which `$0` stands for what was there.
    pub(crate) fn replace(self, from: &str, to: &str) -> Component {
        assert!(self.text.contains(from), "{from}");
        Component { text: self.text.replace(from, &to.replace("$0", from)) }
    }

    pub(crate) fn wasm(&self) -> Vec<u8> {
        wat::parse_str(&self.text).expect("a component")
    }
}

/// `wasm` with a custom section `latch:version`.
pub(crate) fn with_version(mut wasm: Vec<u8>, version: &str) -> Vec<u8> {
    let name = b"latch:version";
    let size = u8::try_from(1 + name.len() + version.len()).expect("short");
    wasm.extend([0, size, name.len() as u8]);
    wasm.extend(name);
    wasm.extend(version.as_bytes());
    wasm
}

pub(crate) fn runtime() -> Runtime {
    Runtime::new(RuntimeSettings { max_resident: 4, max_in_flight: 4, ..RuntimeSettings::default() })
        .expect("a runtime")
}

pub(crate) fn source(name: &str, wasm: Vec<u8>) -> PluginSource {
    PluginSource { name: PluginName::parse(name).expect("a name"), wasm, terms: Terms::default() }
}

pub(crate) fn name(text: &str) -> MethodName {
    MethodName::parse(text).expect("a name")
}

/// A device with nothing on it.
pub(crate) fn snapshot() -> Snapshot {
    Snapshot {
        device_id: DeviceId::parse("door-0001").expect("an id"),
        desired: Arc::new(Map::new()),
        desired_version: 3,
        reported: Arc::new(Map::new()),
        state: Arc::new(BTreeMap::new()),
        timers: Arc::new(BTreeMap::new()),
        now: 1_700_000_000_000,
        telemetry_room: 256 << 10,
    }
}

/// Memory: the list of names at 0, the answer at 32, the method's name at 64, the list of paths at 128, the verdict at
/// 160, the path at 192; arguments from 4096 on.
const TEXT: &str = r#"
(component
  (import "iothub:device/state@0.1.0" (instance $state (export "delete" (func (param "key" string)))))
  (core module $libc
    (memory (export "memory") 2)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
  (core instance $libc (instantiate $libc))
  (core func $delete (canon lower (func $state "delete") (memory (core memory $libc "memory"))))
  (core module $guest
    (import "libc" "memory" (memory 2))
    (import "host" "delete" (func $delete (param i32 i32)))
    (data (i32.const 0) "\08\00\00\00\01\00\00\00\40\00\00\00METHOD_LENGTH")
    (data (i32.const 64) "METHOD")
    (func (export "names") (result i32) (i32.const 0))
    (func (export "call")
      (param $name i32) (param $name_len i32) (param $payload i32) (param $payload_len i32) (result i32)
      BODY))
  (core instance $guest (instantiate $guest
    (with "libc" (instance $libc))
    (with "host" (instance (export "delete" (func $delete))))))
  ;; methods
  ;; more
)"#;

const METHODS: &str = include_str!("../../../tests/fixtures/methods.wat");

const REACTIONS: &str = r#"
  (core module $reactor
    (import "libc" "memory" (memory 2))
    (data (i32.const 128) "\88\00\00\00\01\00\00\00\c0\00\00\00PATH_LENGTH")
    (data (i32.const 192) "PATH")
    (func (export "watched") (result i32) (i32.const 128))
    (func (export "changed") (param $version i64) (param $patch i32) (param $patch_len i32) (result i32)
      (i32.store (i32.const 160) (i32.ne (local.get $patch_len) (i32.const 0)))
      (i32.store (i32.const 164) (local.get $patch))
      (i32.store (i32.const 168) (local.get $patch_len))
      (i32.const 160)))
  (core instance $reactor (instantiate $reactor (with "libc" (instance $libc))))
  (type $change (record (field "version" u64) (field "patch" string)))
  (type $verdict (variant (case "done") (case "retry" string)))
  (func $watched (result (list string))
    (canon lift (core func $reactor "watched") (memory (core memory $libc "memory"))))
  (func $changed (param "change" $change) (result $verdict)
    (canon lift (core func $reactor "changed") (memory (core memory $libc "memory"))
      (realloc (core func $libc "realloc"))))
  (component $reactions
    (type $change (record (field "version" u64) (field "patch" string)))
    (import "import-change" (type $change' (eq $change)))
    (type $verdict (variant (case "done") (case "retry" string)))
    (import "import-verdict" (type $verdict' (eq $verdict)))
    (import "import-watched" (func $watched (result (list string))))
    (import "import-changed" (func $changed (param "change" $change') (result $verdict')))
    (export $change'' "change" (type $change'))
    (export $verdict'' "verdict" (type $verdict'))
    (export "watched" (func $watched))
    (export "changed" (func $changed) (func (param "change" $change'') (result $verdict''))))
  (instance $reactions (instantiate $reactions
    (with "import-change" (type $change))
    (with "import-verdict" (type $verdict))
    (with "import-watched" (func $watched))
    (with "import-changed" (func $changed))))
  (export "iothub:plugin/reactions@0.1.0" (instance $reactions))
"#;

/// The verdict at 320; a realloc of its own, which leaves room for `from ` before the texts. The message comes as a
/// pointer: its source at 0, its body at 96.
const MESSAGES: &str = r#"
  (core module $letters
    (import "libc" "memory" (memory 2))
    (global $next (mut i32) (i32.const 24576))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $next (i32.and (i32.add (global.get $next) (i32.const 23)) (i32.const -16)))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 3))))
    (func (export "received") (param $message i32) (result i32)
      (local $text i32) (local $length i32)
      (local.set $text (i32.load offset=96 (local.get $message)))
      (local.set $length (i32.load offset=100 (local.get $message)))
      (i32.store (i32.const 320) (i32.ne (local.get $length) (i32.const 0)))
      (if (i32.load8_u (local.get $message)) (then
        (local.set $text (i32.sub (i32.load offset=4 (local.get $message)) (i32.const 5)))
        (i32.store (local.get $text) (i32.const 0x6d6f7266))
        (i32.store8 offset=4 (local.get $text) (i32.const 0x20))
        (local.set $length (i32.add (i32.load offset=8 (local.get $message)) (i32.const 5)))))
      (i32.store (i32.const 324) (local.get $text))
      (i32.store (i32.const 328) (local.get $length))
      (i32.const 320)))
  (core instance $letters (instantiate $letters (with "libc" (instance $libc))))
  (type $source (variant (case "cloud") (case "peer" string)))
  (type $message (record (field "source" $source) (field "id" (option string)) (field "correlation-id" (option string))
    (field "user-id" (option string)) (field "expiry" (option u64)) (field "content-type" (option string))
    (field "content-encoding" (option string)) (field "properties" (list (tuple string string)))
    (field "body" (list u8))))
  (type $letter_verdict (variant (case "done") (case "retry" string)))
  (func $received (param "message" $message) (result $letter_verdict)
    (canon lift (core func $letters "received") (memory (core memory $libc "memory"))
      (realloc (core func $letters "realloc"))))
  (component $messages
    (type $source (variant (case "cloud") (case "peer" string)))
    (import "import-source" (type $source' (eq $source)))
    (type $message (record (field "source" $source') (field "id" (option string))
      (field "correlation-id" (option string)) (field "user-id" (option string)) (field "expiry" (option u64))
      (field "content-type" (option string)) (field "content-encoding" (option string))
      (field "properties" (list (tuple string string))) (field "body" (list u8))))
    (import "import-message" (type $message' (eq $message)))
    (type $verdict (variant (case "done") (case "retry" string)))
    (import "import-verdict" (type $verdict' (eq $verdict)))
    (import "import-received" (func $received (param "message" $message') (result $verdict')))
    (export $source'' "source" (type $source'))
    (type $message-again (record (field "source" $source'') (field "id" (option string))
      (field "correlation-id" (option string)) (field "user-id" (option string)) (field "expiry" (option u64))
      (field "content-type" (option string)) (field "content-encoding" (option string))
      (field "properties" (list (tuple string string))) (field "body" (list u8))))
    (export $message'' "message" (type $message-again))
    (export $verdict'' "verdict" (type $verdict'))
    (export "received" (func $received) (func (param "message" $message'') (result $verdict''))))
  (instance $messages (instantiate $messages
    (with "import-source" (type $source))
    (with "import-message" (type $message))
    (with "import-verdict" (type $letter_verdict))
    (with "import-received" (func $received))))
  (export "iothub:plugin/messages@0.1.0" (instance $messages))
"#;

/// The verdict at 224, the answer of `set` at 240.
const TICKS: &str = r#"
  (import "iothub:device/types@0.1.0" (instance $types
    (type $error (variant (case "denied") (case "invalid" string) (case "too-large") (case "busy")
      (case "other" string)))
    (export "error" (type (eq $error)))))
  (alias export $types "error" (type $device_error))
  (import "iothub:device/timers@0.1.0" (instance $timers
    (alias outer 1 $device_error (type $error))
    (export "error" (type $error' (eq $error)))
    (type $when (variant (case "after" u64) (case "at" u64)))
    (export "when" (type $when' (eq $when)))
    (export "set" (func (param "name" string) (param "when" $when') (param "payload" (list u8))
      (result (result (error $error')))))))
  (core module $bump
    (global $next (mut i32) (i32.const 16384))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (i32.and (i32.add (local.get 3) (i32.const 15)) (i32.const -8))))))
  (core instance $bump (instantiate $bump))
  (core func $set (canon lower (func $timers "set") (memory (core memory $libc "memory"))
    (realloc (core func $libc "realloc"))))
  (core module $ticker
    (import "libc" "memory" (memory 2))
    (import "host" "set" (func $set (param i32 i32 i32 i64 i32 i32 i32)))
    (func (export "fired") (param $name i32) (param $name_len i32) (param $due i64)
      (param $payload i32) (param $payload_len i32) (result i32)
      (call $set (local.get $name) (local.get $name_len) (i32.const 1) (i64.const 7)
        (local.get $payload) (local.get $payload_len) (i32.const 240))
      (if (i32.load8_u (i32.const 240)) (then unreachable))
      (i32.store (i32.const 224) (i32.ne (local.get $payload_len) (i32.const 0)))
      (i32.store (i32.const 228) (local.get $payload))
      (i32.store (i32.const 232) (local.get $payload_len))
      (i32.const 224)))
  (core instance $ticker (instantiate $ticker
    (with "libc" (instance $libc))
    (with "host" (instance (export "set" (func $set))))))
  (type $timer (record (field "name" string) (field "due" u64) (field "payload" (list u8))))
  (type $tick_verdict (variant (case "done") (case "retry" string)))
  (func $fired (param "timer" $timer) (result $tick_verdict)
    (canon lift (core func $ticker "fired") (memory (core memory $libc "memory"))
      (realloc (core func $bump "realloc"))))
  (component $ticks
    (type $timer (record (field "name" string) (field "due" u64) (field "payload" (list u8))))
    (import "import-timer" (type $timer' (eq $timer)))
    (type $verdict (variant (case "done") (case "retry" string)))
    (import "import-verdict" (type $verdict' (eq $verdict)))
    (import "import-fired" (func $fired (param "timer" $timer') (result $verdict')))
    (export $timer'' "timer" (type $timer'))
    (export $verdict'' "verdict" (type $verdict'))
    (export "fired" (func $fired) (func (param "timer" $timer'') (result $verdict''))))
  (instance $ticks (instantiate $ticks
    (with "import-timer" (type $timer))
    (with "import-verdict" (type $tick_verdict))
    (with "import-fired" (func $fired))))
  (export "iothub:plugin/ticks@0.1.0" (instance $ticks))
"#;

/// The result at 256; a realloc of its own, since two texts arrive.
const LIFECYCLE: &str = r#"
  (core module $texts
    (import "libc" "memory" (memory 2))
    (global $next (mut i32) (i32.const 20480))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 3))))
    (func (export "state-format") (result i32) (i32.const 7))
    (func (export "activated") (param $some i32) (param $label i32) (param $label_len i32) (param i32 i32)
      (param $format i32) (result i32)
      (i32.store (i32.const 256)
        (i32.and (local.get $some) (i32.ne (local.get $format) (i32.const 7))))
      (i32.store (i32.const 260) (local.get $label))
      (i32.store (i32.const 264) (local.get $label_len))
      (i32.const 256)))
  (core instance $texts (instantiate $texts (with "libc" (instance $libc))))
  (type $version (record (field "label" string) (field "hash" string) (field "state-format" u32)))
  (func $state-format (result u32) (canon lift (core func $texts "state-format")))
  (func $activated (param "previous" (option $version)) (result (result (error string)))
    (canon lift (core func $texts "activated") (memory (core memory $libc "memory"))
      (realloc (core func $texts "realloc"))))
  (component $lifecycle
    (type $version (record (field "label" string) (field "hash" string) (field "state-format" u32)))
    (import "import-version" (type $version' (eq $version)))
    (import "import-activated" (func $activated (param "previous" (option $version')) (result (result (error string)))))
    (import "import-state-format" (func $state-format (result u32)))
    (export $version'' "version" (type $version'))
    (export "state-format" (func $state-format))
    (export "activated" (func $activated)
      (func (param "previous" (option $version'')) (result (result (error string))))))
  (instance $lifecycle (instantiate $lifecycle
    (with "import-version" (type $version))
    (with "import-state-format" (func $state-format))
    (with "import-activated" (func $activated))))
  (export "iothub:plugin/lifecycle@0.1.0" (instance $lifecycle))
"#;
