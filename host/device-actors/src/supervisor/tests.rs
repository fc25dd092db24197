use durable_store::Durability;
use iothub_protocol::id::{MethodName, RequestId};
use iothub_protocol::link::{FromHub, TwinDocument};
use plugin_runtime::{Runtime, RuntimeSettings};
use tokio::sync::mpsc;

use super::*;
use crate::bell::{Signal, bell};
use crate::driver::CurrentPlugins;
use crate::limits::Limits;
use crate::peers::Peers;
use crate::residency::Residency;
use crate::store::StateStore;

/// A device, and its connection's other end.
struct Device {
    supervised: Supervised,
    wires: Wires,
    to_actor: mpsc::Sender<FromHub>,
    from_actor: mpsc::Receiver<ToHub>,
    _folder: tempfile::TempDir,
}

fn device() -> Device {
    let folder = tempfile::tempdir().expect("a folder");
    let store = StateStore::open(&folder.path().join("state.db"), Durability::Process).expect("opens");
    let runtime = Runtime::new(RuntimeSettings::default()).expect("an engine");
    let (current, peers) = (CurrentPlugins::default(), Peers::default());
    let from_peers = peers.join(DeviceId::parse("door-0001").expect("an id"));
    let (bell, signals) = bell();
    let limits = Limits { restart: Backoff { first: Duration::ZERO, cap: Duration::ZERO }, ..Limits::default() };
    let shared =
        Shared { runtime, store, residency: Residency::new(1), current, peers, limits: watch::Sender::new(limits) };
    let supervised = Supervised {
        device: DeviceId::parse("door-0001").expect("an id"),
        plugins: watch::channel(Arc::default()).1,
        shared: Arc::new(shared),
        showing: Showing::new(ActorView::default()),
        bell,
    };
    let (to_actor, from_hub) = mpsc::channel(4);
    let (to_hub, from_actor) = mpsc::channel(1);
    let wires = Wires { link: HubLink { from_hub, to_hub, from_peers }, signals };
    Device { supervised, wires, to_actor, from_actor, _folder: folder }
}

fn method(rid: &str) -> FromHub {
    let name = MethodName::parse("lockDoor").expect("a name");
    FromHub::Method { rid: RequestId::parse(rid).expect("an id"), name, payload: "null".to_owned() }
}

#[tokio::test]
async fn an_actor_that_panics_is_started_again_and_answers_on_a_new_connection() {
    let Device { supervised, mut wires, to_actor, mut from_actor, _folder } = device();
    let mut runs = 0;
    let supervising = supervise(&supervised, &mut wires, |supervised, wires, crashes| {
        runs += 1;
        match runs {
            1 => Box::pin(async move {
                wires.link.from_hub.recv().await;
                panic!("a mistake with {}", "the first method");
            }),
            2 => Box::pin(async { Err("no disk".to_owned()) }),
            _ => Box::pin(supervised.run_once(None, wires, crashes)),
        }
    });
    let hub = async {
        to_actor.send(method("1")).await.expect("the actor is there");
        for _ in 0..2 {
            let message = from_actor.recv().await;
            assert_eq!(message, Some(ToHub::Reconnect { after: Duration::ZERO }), "method 1 has lost its connection");
        }
        for message in [
            FromHub::Disconnected { reason: "as asked".to_owned() },
            FromHub::Connected,
            FromHub::Twin(TwinDocument::default()),
            method("2"),
        ] {
            to_actor.send(message).await.expect("the actor is there");
        }
        let answer = from_actor.recv().await;
        assert!(matches!(&answer, Some(ToHub::MethodResponse { rid, status: 404, .. }) if rid.as_str() == "2"));
        let view = supervised.showing.shown().view().expect("it runs");
        assert_eq!((view.restarts, view.connected), (2, true));
        assert_eq!(view.last_crash.map(|crash| crash.reason.clone()).as_deref(), Some("no disk"));
        drop(to_actor);
    };
    tokio::join!(supervising, hub);
    assert_eq!(runs, 3, "it ended by itself then");
}

#[tokio::test]
async fn a_connection_that_waits_for_the_actor_does_not_hang_with_it() {
    let Device { supervised, mut wires, to_actor, mut from_actor, _folder } = device();
    // Both channels are full, and the connection's end takes nothing before it has given what it has.
    wires.link.to_hub.try_send(ToHub::Reconnect { after: Duration::MAX }).expect("room");
    (0..4).for_each(|_| to_actor.try_send(method("1")).expect("room"));
    let panics = supervise(&supervised, &mut wires, |_, _, _| Box::pin(async { panic!("each time") }));
    let connection = async {
        for _ in 0..4 {
            to_actor.send(method("2")).await.expect("the actor is there");
        }
        for _ in 0..3 {
            from_actor.recv().await.expect("asked to connect anew");
        }
        supervised.bell.ring(Signal::Stop);
        // The last one may wait for room again.
        while from_actor.recv().await.is_some() {}
    };
    let ended = tokio::select! {
        () = panics => true,
        () = connection => false,
    };
    assert!(ended, "stopped between two tries");
}

#[tokio::test]
async fn what_panics_even_when_it_is_dropped_is_caught() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("and again");
        }
    }
    let told = caught(Box::pin(async {
        let bomb = Bomb;
        std::future::ready(()).await;
        drop(bomb);
        Ok(())
    }));
    assert_eq!(told.await, Err("panic: and again".to_owned()));
    let bomb = Bomb;
    let mut parts = Some(bomb);
    let told = caught(Box::pin(poll_fn(move |_| {
        assert!(parts.is_none(), "the first");
        parts = None;
        Poll::Ready(Ok(()))
    })));
    assert_eq!(told.await, Err("panic: the first".to_owned()));
}

#[test]
fn pauses_grow_until_one_has_run_for_a_good_while() {
    let backoff = Limits::default().restart;
    let (mut crashes, mut now) = (Crashes::default(), Instant::now());
    let mut pauses = Vec::new();
    for ran in [1, 1, 1, 64, 65, 1] {
        let started = now;
        now += Duration::from_secs(ran);
        pauses.push(crashes.add(backoff, started, now, String::new()).as_millis());
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 250, 500]);
    let mut view = ActorView::default();
    crashes.show(&mut view);
    assert_eq!((view.restarts, view.last_crash.map(|crash| crash.at)), (6, Some(now)));
}
