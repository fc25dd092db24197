;; The plugin under the kills, as a core module for the world `ledger`.
;;
;; Whatever it is called with is an entry of three letters: a method's payload, a message's body, a timer's payload, the
;; desired property `x`. It appends the entry to the ledger that it keeps in its state, says the whole ledger in a
;; message and, to a method, in its answer, and reports a property with the entry's name. It sets a timer with the
;; entry's number as its name: `t..` for any entry; `t..` is followed by `u..` under the same name, `u..` by nothing.
;;
;; Memory: answers of the host at 64, what this answers at 96, a timer's payload at 128, texts from 256 on, the ledger
;; from 1024 on, in quotes, what the host brings from 16384 on.
(module
  (import "iothub:device/state@0.1.0" "get" (func $get (param i32 i32 i32)))
  (import "iothub:device/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))
  (import "iothub:device/telemetry@0.1.0" "send" (func $send (param i32 i32 i32 i32 i32 i32 i32 i32)))
  (import "iothub:device/twin@0.1.0" "report" (func $report (param i32 i32 i32)))
  (import "iothub:device/timers@0.1.0" "set" (func $wait (param i32 i32 i32 i64 i32 i32 i32)))
  (import "iothub:device/log@0.1.0" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 2)
  ;; Lists of one text each, with the texts.
  (data (i32.const 256) "\08\01\00\00\01\00\00\00\10\01\00\00\04\00\00\00note")
  (data (i32.const 288) "\28\01\00\00\01\00\00\00\30\01\00\00\01\00\00\00x")
  (data (i32.const 320) "ledger")
  (data (i32.const 336) "about to return")
  (data (i32.const 368) "{\"...\":1}")
  (data (i32.const 1023) "\"")
  (global $free (mut i32) (i32.const 16384))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (global.get $free)
    (global.set $free (i32.and (i32.add (i32.add (global.get $free) (local.get 3)) (i32.const 7)) (i32.const -8))))
  ;; The host's answer was no error.
  (func $check (if (i32.load8_u (i32.const 64)) (then unreachable)))
  ;; How long the ledger is with `entry`.
  (func $note (param $entry i32) (result i32)
    (local $length i32) (local $is_first i32)
    (call $get (i32.const 320) (i32.const 6) (i32.const 64))
    (if (i32.load8_u (i32.const 64)) (then
      (local.set $length (i32.load (i32.const 72)))
      (memory.copy (i32.const 1024) (i32.load (i32.const 68)) (local.get $length))))
    (memory.copy (i32.add (i32.const 1024) (local.get $length)) (local.get $entry) (i32.const 3))
    (local.set $length (i32.add (local.get $length) (i32.const 3)))
    (i32.store8 (i32.add (i32.const 1024) (local.get $length)) (i32.const 0x22))
    (call $set (i32.const 320) (i32.const 6) (i32.const 1024) (local.get $length) (i32.const 64))
    (call $check)
    (call $send (i32.const 1024) (local.get $length) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
      (i32.const 64))
    (call $check)
    (memory.copy (i32.const 370) (local.get $entry) (i32.const 3))
    (call $report (i32.const 368) (i32.const 9) (i32.const 64))
    (call $check)
    (if (i32.ne (i32.load8_u (local.get $entry)) (i32.const 0x75)) (then
      (local.set $is_first (i32.ne (i32.load8_u (local.get $entry)) (i32.const 0x74)))
      (i32.store8 (i32.const 128) (i32.sub (i32.const 0x75) (local.get $is_first)))
      (i32.store16 (i32.const 129) (i32.load16_u (i32.add (local.get $entry) (i32.const 1))))
      (call $wait (i32.const 129) (i32.const 2) (i32.const 0)
        (select (i64.const 1) (i64.const 10) (local.get $is_first)) (i32.const 128) (i32.const 3) (i32.const 64))
      (call $check)))
    (call $log (i32.const 2) (i32.const 336) (i32.const 15))
    (global.set $free (i32.const 16384))
    (local.get $length))
  (func (export "iothub:plugin/methods@0.1.0#names") (result i32) (i32.const 256))
  (func (export "iothub:plugin/methods@0.1.0#call") (param i32 i32) (param $payload i32) (param i32) (result i32)
    (i32.store (i32.const 96) (i32.const 200))
    (i32.store (i32.const 100) (i32.const 1023))
    (i32.store (i32.const 104) (i32.add (call $note (i32.add (local.get $payload) (i32.const 1))) (i32.const 2)))
    (i32.const 96))
  (func (export "iothub:plugin/reactions@0.1.0#watched") (result i32) (i32.const 288))
  ;; The patch is `{"x":"d01"}`.
  (func (export "iothub:plugin/reactions@0.1.0#changed") (param i64) (param $patch i32) (param i32) (result i32)
    (drop (call $note (i32.add (local.get $patch) (i32.const 6))))
    (call $done))
  ;; The message comes in one piece; its body is at 96.
  (func (export "iothub:plugin/messages@0.1.0#received") (param $message i32) (result i32)
    (drop (call $note (i32.load offset=96 (local.get $message))))
    (call $done))
  (func (export "iothub:plugin/ticks@0.1.0#fired") (param i32 i32 i64) (param $payload i32) (param i32) (result i32)
    (drop (call $note (local.get $payload)))
    (call $done))
  (func $done (result i32)
    (i32.store8 (i32.const 96) (i32.const 0))
    (i32.const 96)))
