//! Guests that want too much, or fail in a way of their own, each as a version of lock-door. Written by hand: no compiler
//! makes most of them.

/// How a guest misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vice {
    /// Does what it should: answers with the payload.
    None,
    EndlessLoop,
    /// Takes memory without end, and touches every page of it.
    MemoryHoard,
    StackOverflow,
    /// Ten thousand lines in a call.
    LogFlood,
    TrapsEachTime,
    TrapsEachThirdTime,
    /// Traps where the payload is a number below 20: a fifth of the calls of whoever counts to a hundred. Answers the
    /// others with status 202.
    TrapsForOneInFive,
    TenMegabytes,
    /// One table entry after the other, as long as there are any.
    TableGrowth,
    /// Fifty thousand arrays in each other.
    DeepJson,
    /// Every instance computes for a while before it takes its first call, in which it traps.
    SlowStart,
}

impl Vice {
    /// Every vice of a component that is a plugin.
    pub(crate) const ALL: [Vice; 10] = [
        Vice::EndlessLoop,
        Vice::MemoryHoard,
        Vice::StackOverflow,
        Vice::LogFlood,
        Vice::TrapsEachTime,
        Vice::TrapsEachThirdTime,
        Vice::TenMegabytes,
        Vice::TableGrowth,
        Vice::DeepJson,
        Vice::SlowStart,
    ];

    /// A component that answers `lockDoor` and `unlockDoor`.
    pub(crate) fn component(self) -> Vec<u8> {
        let text = GUEST.replace(";; methods", include_str!("../../../fixtures/methods.wat"));
        let text = text.replace("BODY", self.body()).replace("DEFINITIONS", self.definitions());
        wat::parse_str(text).expect("a component")
    }

    /// What its caller hears. Of one that traps each third time, that every third time.
    pub(crate) fn status(self) -> i32 {
        match self {
            Vice::None | Vice::LogFlood | Vice::TableGrowth => 200,
            Vice::EndlessLoop => 504,
            _ => 500,
        }
    }

    fn body(self) -> &'static str {
        match self {
            Vice::None => ECHO,
            Vice::EndlessLoop => "(loop $again (br $again)) unreachable",
            Vice::MemoryHoard => {
                "(local $page i32)
                 (loop $more
                   (local.set $page (memory.grow (i32.const 1)))
                   (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
                   (memory.fill (i32.shl (local.get $page) (i32.const 16)) (i32.const 1) (i32.const 65536))
                   (br $more))
                 unreachable"
            }
            Vice::StackOverflow => "(call $deep)",
            Vice::LogFlood => FLOOD,
            Vice::TrapsEachTime => "unreachable",
            Vice::TrapsEachThirdTime => THIRD,
            Vice::TrapsForOneInFive => ONE_IN_FIVE,
            Vice::TenMegabytes => {
                "(drop (memory.grow (i32.const 161)))
                 (i32.store (i32.const 32) (i32.const 200))
                 (i32.store (i32.const 36) (i32.const 8192))
                 (i32.store (i32.const 40) (i32.const 10485760))
                 (i32.const 32)"
            }
            Vice::TableGrowth => GROWTH,
            Vice::DeepJson => {
                "(memory.fill (i32.const 8192) (i32.const 0x5b) (i32.const 50000))
                 (memory.fill (i32.const 58192) (i32.const 0x5d) (i32.const 50000))
                 (i32.store (i32.const 32) (i32.const 200))
                 (i32.store (i32.const 36) (i32.const 8192))
                 (i32.store (i32.const 40) (i32.const 100000))
                 (i32.const 32)"
            }
            // So that the next call begins with a start again.
            Vice::SlowStart => "unreachable",
        }
    }

    fn definitions(self) -> &'static str {
        match self {
            Vice::StackOverflow => "(func $deep (result i32) (i32.add (call $deep) (call $deep)))",
            Vice::TrapsEachThirdTime => "(global $calls (mut i32) (i32.const 0))",
            Vice::TableGrowth => "(table $t 1 funcref)",
            Vice::SlowStart => {
                "(func $start (local $n i32)
                   (loop $more
                     (local.set $n (i32.add (local.get $n) (i32.const 1)))
                     (br_if $more (i32.lt_u (local.get $n) (i32.const 50000000)))))
                 (start $start)"
            }
            _ => "",
        }
    }
}

/// Status 200 and the payload.
const ECHO: &str = "
    (i32.store (i32.const 32) (i32.const 200))
    (i32.store (i32.const 36) (local.get $payload))
    (i32.store (i32.const 40) (local.get $payload_len))
    (i32.const 32)";

const FLOOD: &str = "
    (local $n i32)
    (loop $again
      (call $log (i32.const 2) (i32.const 8192) (i32.const 1024))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 10000))))
    (i32.store (i32.const 32) (i32.const 200))
    (i32.store (i32.const 36) (local.get $payload))
    (i32.store (i32.const 40) (local.get $payload_len))
    (i32.const 32)";

const THIRD: &str = "
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (if (i32.eqz (i32.rem_u (global.get $calls) (i32.const 3))) (then unreachable))
    (i32.store (i32.const 32) (i32.const 200))
    (i32.store (i32.const 36) (local.get $payload))
    (i32.store (i32.const 40) (local.get $payload_len))
    (i32.const 32)";

/// One digit, or a first digit of 1 before a second one.
const ONE_IN_FIVE: &str = "
    (if (i32.eq (local.get $payload_len) (i32.const 1)) (then unreachable))
    (if (i32.eq (i32.load8_u (local.get $payload)) (i32.const 0x31)) (then unreachable))
    (i32.store (i32.const 32) (i32.const 202))
    (i32.store (i32.const 36) (local.get $payload))
    (i32.store (i32.const 40) (local.get $payload_len))
    (i32.const 32)";

const GROWTH: &str = "
    (loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 1)) (i32.const -1))))
    (i32.store (i32.const 32) (i32.const 200))
    (i32.store (i32.const 36) (local.get $payload))
    (i32.store (i32.const 40) (local.get $payload_len))
    (i32.const 32)";

/// Memory: the list of names at 0, the answer at 32, the names at 64 and 80, arguments at 4096, room from 8192 on.
const GUEST: &str = r#"
(component
  (import "iothub:device/log@0.1.0" (instance $log
    (type $levels (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $levels)))
    (export "log" (func (param "level" $level) (param "message" string)))))
  (core module $libc
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32) (param $length i32) (result i32)
      ;; Two texts of a request, one behind the other.
      (if (i32.gt_u (i32.add (global.get $next) (local.get $length)) (i32.const 8192))
        (then (global.set $next (i32.const 4096))))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get $length)))))
  (core instance $libc (instantiate $libc))
  (core func $log (canon lower (func $log "log") (memory (core memory $libc "memory"))))
  (core module $guest
    (import "libc" "memory" (memory 2))
    (import "host" "log" (func $log (param i32 i32 i32)))
    (data (i32.const 0) "\08\00\00\00\02\00\00\00\40\00\00\00\08\00\00\00\50\00\00\00\0a\00\00\00")
    (data (i32.const 64) "lockDoor")
    (data (i32.const 80) "unlockDoor")
    DEFINITIONS
    (func (export "names") (result i32) (i32.const 0))
    (func (export "call")
      (param $name i32) (param $name_len i32) (param $payload i32) (param $payload_len i32) (result i32)
      BODY))
  (core instance $guest (instantiate $guest
    (with "libc" (instance $libc))
    (with "host" (instance (export "log" (func $log))))))
  ;; methods
)"#;
