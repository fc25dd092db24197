//! Guests that ask WASI for what they may or may not have.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::tests::{SHORT, hang, instance_on};
use super::*;
use crate::Snapshot;
use crate::runtime::Runtime;
use crate::terms::{AddressGrant, ClockGrant, Grants, Terms};
use crate::testing::{Component, name, snapshot, source};
use crate::version::PluginSource;

/// For answers that are given by memory from 48 on: status there, text's place and length behind it.
pub(super) const ANSWER: &str = "(i32.const 48)";

/// Where a list, and texts in it, can arrive without hurting each other.
pub(super) const ALLOCATOR: &str = r#"
  (core module $alloc
    (global $next (mut i32) (i32.const 16384))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $next)
      (global.set $next (i32.and (i32.add (i32.add (global.get $next) (local.get 3)) (i32.const 7)) (i32.const -8)))))
  (core instance $alloc (instantiate $alloc))"#;

async fn granted(component: Component, grants: Grants) -> Instance {
    instance_on(component, RuntimeSettings::default(), Terms { grants, ..Terms::default() }).await
}

async fn call_at(instance: &mut Instance, now: u64) -> GuestResponse {
    let snapshot = Snapshot { now, ..snapshot() };
    instance.call_method(snapshot, &name("ask"), "1").await.expect("an answer").0
}

pub(super) async fn call(instance: &mut Instance) -> GuestResponse {
    call_at(instance, snapshot().now).await
}

/// Answers with a random number as the status.
fn random(interface: &str, function: &str) -> Component {
    let imports = format!(
        r#"
  (import "wasi:random/{interface}@0.2.0" (instance $random (export "{function}" (func (result u64)))))
  (core func $random (canon lower (func $random "{function}")))"#
    );
    let body = format!("(i32.store {ANSWER} (i32.wrap_i64 (call $random))) {ANSWER}");
    Component::method("ask", &body).importing("random", "(result i64)", &imports)
}

fn secure() -> Component {
    random("random", "get-random-u64")
}

fn insecure() -> Component {
    random("insecure", "get-insecure-random-u64")
}

#[tokio::test]
async fn secure_random_numbers_are_refused_unless_granted() {
    let mut denied = granted(secure(), Grants::default()).await;
    let failure = denied.call_method(snapshot(), &name("ask"), "1").await.expect_err("refused");
    assert_eq!(
        failure.to_string(),
        "the plugin trapped: it asked for secure random numbers (wasi:random/random) and is not granted randomness"
    );
    let grants = || Grants { randomness: true, ..Grants::default() };
    let (mut one, mut other) = (granted(secure(), grants()).await, granted(secure(), grants()).await);
    let numbers = async |instance: &mut Instance| (call(instance).await.status, call(instance).await.status);
    assert_ne!(numbers(&mut one).await, numbers(&mut other).await);
    let (mut one, mut other) = (granted(insecure(), grants()).await, granted(insecure(), grants()).await);
    assert_ne!(numbers(&mut one).await, numbers(&mut other).await, "nor are the others foretold");
}

#[tokio::test]
async fn a_runtime_that_seeds_itself_at_the_start_gets_numbers_that_can_be_foretold() {
    let start = "(func (export \"names\") (result i32) (drop (call $random))";
    let seeding = || secure().replace("(func (export \"names\") (result i32)", start);
    let (mut one, mut other) =
        (granted(seeding(), Grants::default()).await, granted(seeding(), Grants::default()).await);
    for _ in 0..2 {
        assert_eq!(call(&mut one).await, call(&mut other).await);
    }
    assert_eq!(one.store.data().output.lines_said(), 0, "the self-test said it, once for all instances");
}

#[tokio::test]
async fn ungranted_numbers_follow_from_device_version_and_time() {
    let runtime = Runtime::new(RuntimeSettings::default()).expect("a runtime");
    let loading = runtime.clone();
    let load = move || {
        [insecure(), insecure().with("(func)")].map(|it| loading.load(source("p", it.wasm())).expect("a good plugin"))
    };
    let [version, later] = tokio::task::spawn_blocking(load).await.expect("no panic");
    let numbers = async |version, device: &str, now| {
        let device = DeviceId::parse(device).expect("an id");
        let mut instance = runtime.instantiate(version, &device, now).await.expect("an instance");
        (call(&mut instance).await.status, call(&mut instance).await.status)
    };
    let first = numbers(&version, "door-1", 5).await;
    assert_ne!(first.0, first.1);
    assert_eq!(first, numbers(&version, "door-1", 5).await);
    assert_ne!(first, numbers(&version, "door-2", 5).await);
    assert_ne!(first, numbers(&version, "door-1", 6).await, "a new instance does not say the same again");
    assert_ne!(first, numbers(&later, "door-1", 5).await);
}

#[tokio::test]
async fn too_many_random_bytes_at_once_are_refused_before_the_host_makes_them() {
    let imports = r#"
  (import "wasi:random/insecure@0.2.0" (instance $random
    (export "get-insecure-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core func $random (canon lower (func $random "get-insecure-random-bytes") (memory (core memory $libc "memory"))
    (realloc (core func $libc "realloc"))))"#;
    for randomness in [false, true] {
        let body = format!("(call $random (i64.const 0x7fffffffffffffff) (i32.const 16)) {ANSWER}");
        let component = Component::method("ask", &body).importing("random", "(param i64 i32)", imports);
        let mut instance = granted(component, Grants { randomness, ..Grants::default() }).await;
        let failure = instance.call_method(snapshot(), &name("ask"), "1").await.expect_err("refused");
        assert!(
            failure.to_string().ends_with("9223372036854775807 random bytes at once; the limit is 65536"),
            "{failure}"
        );
    }
}

/// Answers with the seconds of the wall clock as the status and leaves its nanoseconds at 72.
fn wall_clock(body: &str) -> Component {
    let imports = r#"
  (import "wasi:clocks/wall-clock@0.2.0" (instance $clock
    (type $datetime (record (field "seconds" u64) (field "nanoseconds" u32)))
    (export "datetime" (type $shown (eq $datetime)))
    (export "now" (func (result $shown)))))
  (core func $now (canon lower (func $clock "now") (memory (core memory $libc "memory"))))"#;
    let body = format!(
        "(call $now (i32.const 64)) (i32.store {ANSWER} (i32.wrap_i64 (i64.load (i32.const 64)))) {body} {ANSWER}"
    );
    Component::method("ask", &body).importing("now", "(param i32)", imports)
}

#[tokio::test]
async fn a_guest_sees_the_second_of_its_call_unless_a_clock_is_granted() {
    let with = |clock| Grants { clock, ..Grants::default() };
    let whole = "(if (i32.load (i32.const 72)) (then unreachable))";
    let mut instance = granted(wall_clock(whole), with(ClockGrant::CallStart)).await;
    assert_eq!(call_at(&mut instance, 1_700_000_000_999).await.status, 1_700_000_000);
    assert_eq!(call_at(&mut instance, 1_700_000_002_000).await.status, 1_700_000_002);

    let stepped = "(if (i32.rem_u (i32.load (i32.const 72)) (i32.const 100000000)) (then unreachable))";
    let mut instance = granted(wall_clock(stepped), with(ClockGrant::Coarse)).await;
    assert!(call(&mut instance).await.status > 1_750_000_000, "not the time of the snapshot");
    let mut instance = granted(wall_clock(""), with(ClockGrant::Real)).await;
    assert!(call(&mut instance).await.status > 1_750_000_000);
}

/// Sleeps for 20 milliseconds and answers with the milliseconds that passed by the monotonic clock.
fn sleeper() -> Component {
    let imports = r#"
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (export "pollable" (type $waited (eq $pollable)))
    (export "now" (func (result u64)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $waited))))))
  (core func $wait (canon lower (func $clock "subscribe-duration")))
  (core func $now (canon lower (func $clock "now")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))"#;
    let body = format!(
        "(local $before i64)
         (local.set $before (call $now))
         (call $block (call $wait (i64.const 20000000)))
         (i32.store {ANSWER} (i32.wrap_i64 (i64.div_u (i64.sub (call $now) (local.get $before)) (i64.const 1000000))))
         {ANSWER}"
    );
    Component::method("ask", &body)
        .importing("block", "(param i32)", "")
        .importing("now", "(result i64)", "")
        .importing("wait", "(param i64) (result i32)", imports)
}

#[tokio::test]
async fn a_guest_can_sleep_and_sees_it_only_on_a_granted_clock() {
    for (clock, expect) in
        [(ClockGrant::CallStart, 0..=0), (ClockGrant::Coarse, 0..=60_000), (ClockGrant::Real, 20..=60_000)]
    {
        let mut instance = granted(sleeper(), Grants { clock, ..Grants::default() }).await;
        let passed = call(&mut instance).await.status;
        assert!(expect.contains(&passed), "{clock:?}: {passed}");
        assert!(clock != ClockGrant::Coarse || passed % 100 == 0, "{passed}");
    }
}

#[tokio::test]
async fn a_guest_that_waits_for_a_clock_that_stands_is_ended() {
    let imports = r#"
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock (export "now" (func (result u64)))))
  (core func $now (canon lower (func $clock "now")))"#;
    let body = "(local $until i64)
        (local.set $until (i64.add (call $now) (i64.const 1)))
        (loop $again (br_if $again (i64.lt_u (call $now) (local.get $until))))
        unreachable";
    let component = Component::method("lockDoor", body).importing("now", "(result i64)", imports);
    assert_eq!(hang(component).await, CallFailure::Timeout { limit: SHORT });
}

/// Answers with the number of environment variables and the value of the first.
fn environment() -> Component {
    let imports = format!(
        r#"{ALLOCATOR}
  (import "wasi:cli/environment@0.2.0" (instance $environment
    (export "get-environment" (func (result (list (tuple string string)))))))
  (core func $get (canon lower (func $environment "get-environment") (memory (core memory $libc "memory"))
    (realloc (core func $alloc "realloc"))))"#
    );
    let body = format!(
        "(call $get (i32.const 64))
         (i32.store {ANSWER} (i32.load (i32.const 68)))
         (if (i32.load (i32.const 68))
           (then (i64.store offset=4 align=4 {ANSWER} (i64.load offset=8 align=4 (i32.load (i32.const 64))))))
         {ANSWER}"
    );
    Component::method("ask", &body).importing("get", "(param i32)", &imports)
}

#[tokio::test]
async fn a_guest_sees_no_environment_but_the_granted() {
    let mut instance = granted(environment(), Grants::default()).await;
    assert_eq!(call(&mut instance).await, GuestResponse { status: 0, payload: String::new() });
    let environment_granted = BTreeMap::from([("MODE".to_owned(), "night".to_owned())]);
    let mut instance = granted(environment(), Grants { environment: environment_granted, ..Grants::default() }).await;
    assert_eq!(call(&mut instance).await, GuestResponse { status: 1, payload: "night".to_owned() });
}

/// Connects to 127.0.0.1 and answers with 200, or with the error's number in `wasi:sockets/network`.
fn connecting(port: u16) -> Component {
    let imports = r#"
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "input-stream" (type $in (sub resource)))
    (export "output-stream" (type $out (sub resource)))))
  (alias export $streams "input-stream" (type $in))
  (alias export $streams "output-stream" (type $out))
  (import "wasi:sockets/network@0.2.0" (instance $network
    (export "network" (type $network (sub resource)))
    (type $codes (enum "unknown" "access-denied" "not-supported" "invalid-argument" "out-of-memory" "timeout"
      "concurrency-conflict" "not-in-progress" "would-block" "invalid-state" "new-socket-limit" "address-not-bindable"
      "address-in-use" "remote-unreachable" "connection-refused" "connection-reset" "connection-aborted"
      "datagram-too-large" "name-unresolvable" "temporary-resolver-failure" "permanent-resolver-failure"))
    (export "error-code" (type $code (eq $codes)))
    (type $families (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type $family (eq $families)))
    (type $four (tuple u8 u8 u8 u8))
    (export "ipv4-address" (type $ipv4 (eq $four)))
    (type $eight (tuple u16 u16 u16 u16 u16 u16 u16 u16))
    (export "ipv6-address" (type $ipv6 (eq $eight)))
    (type $socket4 (record (field "port" u16) (field "address" $ipv4)))
    (export "ipv4-socket-address" (type $ipv4-socket (eq $socket4)))
    (type $socket6 (record (field "port" u16) (field "flow-info" u32) (field "address" $ipv6) (field "scope-id" u32)))
    (export "ipv6-socket-address" (type $ipv6-socket (eq $socket6)))
    (type $sockets (variant (case "ipv4" $ipv4-socket) (case "ipv6" $ipv6-socket)))
    (export "ip-socket-address" (type (eq $sockets)))))
  (alias export $network "network" (type $network))
  (alias export $network "error-code" (type $code))
  (alias export $network "ip-address-family" (type $family))
  (alias export $network "ip-socket-address" (type $address))
  (import "wasi:sockets/instance-network@0.2.0" (instance $own
    (export "network" (type $its (eq $network)))
    (export "instance-network" (func (result (own $its))))))
  (import "wasi:sockets/tcp@0.2.0" (instance $tcp
    (export "network" (type $its-network (eq $network)))
    (export "pollable" (type $its-pollable (eq $pollable)))
    (export "input-stream" (type $its-in (eq $in)))
    (export "output-stream" (type $its-out (eq $out)))
    (export "error-code" (type $its-code (eq $code)))
    (export "ip-socket-address" (type $its-address (eq $address)))
    (export "tcp-socket" (type $socket (sub resource)))
    (export "[method]tcp-socket.start-connect" (func (param "self" (borrow $socket))
      (param "network" (borrow $its-network)) (param "remote-address" $its-address)
      (result (result (error $its-code)))))
    (export "[method]tcp-socket.finish-connect" (func (param "self" (borrow $socket))
      (result (result (tuple (own $its-in) (own $its-out)) (error $its-code)))))
    (export "[method]tcp-socket.subscribe" (func (param "self" (borrow $socket)) (result (own $its-pollable))))))
  (alias export $tcp "tcp-socket" (type $socket))
  (import "wasi:sockets/tcp-create-socket@0.2.0" (instance $creating
    (export "error-code" (type $its-code (eq $code)))
    (export "ip-address-family" (type $its-family (eq $family)))
    (export "tcp-socket" (type $its-socket (eq $socket)))
    (export "create-tcp-socket" (func (param "address-family" $its-family)
      (result (result (own $its-socket) (error $its-code)))))))
  (core func $create (canon lower (func $creating "create-tcp-socket") (memory (core memory $libc "memory"))))
  (core func $network (canon lower (func $own "instance-network")))
  (core func $connect (canon lower (func $tcp "[method]tcp-socket.start-connect")
    (memory (core memory $libc "memory"))))
  (core func $finish (canon lower (func $tcp "[method]tcp-socket.finish-connect")
    (memory (core memory $libc "memory"))))
  (core func $subscribe (canon lower (func $tcp "[method]tcp-socket.subscribe")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))"#;
    // Results: the case at 64, what is in it at 68 (or at 65, if it is an error of a function without a result).
    let body = format!(
        "(local $socket i32)
         (call $create (i32.const 0) (i32.const 64))
         (if (i32.load8_u (i32.const 64)) (then (i32.store {ANSWER} (i32.load8_u (i32.const 68))) (return {ANSWER})))
         (local.set $socket (i32.load (i32.const 68)))
         (call $connect (local.get $socket) (call $network) (i32.const 0) (i32.const {port}) (i32.const 127)
           (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
           (i32.const 0)
           (i32.const 0) (i32.const 64))
         (if (i32.load8_u (i32.const 64)) (then (i32.store {ANSWER} (i32.load8_u (i32.const 65))) (return {ANSWER})))
         (loop $again
           (call $block (call $subscribe (local.get $socket)))
           (call $finish (local.get $socket) (i32.const 64))
           (br_if $again (i32.and (i32.load8_u (i32.const 64)) (i32.eq (i32.load8_u (i32.const 68)) (i32.const 8)))))
         (i32.store {ANSWER} (select (i32.load8_u (i32.const 68)) (i32.const 200) (i32.load8_u (i32.const 64))))
         {ANSWER}"
    );
    let connect = format!("(param {})", "i32 ".repeat(15));
    Component::method("ask", &body)
        .importing("create", "(param i32 i32)", "")
        .importing("network", "(result i32)", "")
        .importing("connect", &connect, "")
        .importing("finish", "(param i32 i32)", "")
        .importing("subscribe", "(param i32) (result i32)", "")
        .importing("block", "(param i32)", imports)
}

#[tokio::test]
async fn a_guest_connects_to_granted_addresses_only() {
    const ACCESS_DENIED: i32 = 1;
    const CONNECTED: i32 = 200;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let here = listener.local_addr().expect("an address").port();
    let to = |network, prefix, port| AddressGrant { network: IpAddr::V4(network), prefix, port };
    for (addresses, expect) in [
        (vec![], ACCESS_DENIED),
        (vec![to(Ipv4Addr::LOCALHOST, 32, Some(here))], CONNECTED),
        (vec![to(Ipv4Addr::new(127, 200, 0, 0), 8, None)], CONNECTED),
        (vec![to(Ipv4Addr::LOCALHOST, 32, Some(here ^ 1))], ACCESS_DENIED),
        (vec![to(Ipv4Addr::new(127, 0, 0, 2), 32, None), to(Ipv4Addr::new(10, 0, 0, 0), 8, None)], ACCESS_DENIED),
    ] {
        let mut instance =
            granted(connecting(here), Grants { addresses: addresses.clone(), ..Grants::default() }).await;
        assert_eq!(call(&mut instance).await.status, expect, "{addresses:?}");
        if expect == CONNECTED {
            listener.accept().await.expect("the guest's connection");
        }
    }
}

#[tokio::test]
async fn the_granted_folder_must_be_there_for_an_instance_but_not_to_load() {
    let blocked = tempfile::NamedTempFile::new().expect("a file");
    let grants = Grants { folder: Some(blocked.path().to_owned()), ..Grants::default() };
    let source =
        PluginSource { terms: Terms { grants, ..Terms::default() }, ..source("p", Component::echo("lockDoor").wasm()) };
    let runtime = Runtime::new(RuntimeSettings::default()).expect("a runtime");
    let loading = runtime.clone();
    let version = tokio::task::spawn_blocking(move || loading.load(source)).await.expect("no panic").expect("good");
    let failure = runtime.instantiate(&version, &snapshot().device_id, 0).await.expect_err("a file is in the way");
    assert!(matches!(&failure, CallFailure::Instantiate { reason } if reason.contains("p/door-0001")), "{failure}");
}
