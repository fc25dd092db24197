//! A queue with a fake clock.

use proptest::prelude::*;

use super::*;

const LINK: LinkId = LinkId(1);
const OTHER: LinkId = LinkId(2);

struct Fixture {
    queue: Queue,
    wall: DateTime<Utc>,
    steady: Instant,
}

impl Fixture {
    /// A queue with `count` messages, `m1` and on, that live for an hour.
    fn with(count: usize) -> Fixture {
        let wall = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let mut fixture = Fixture { queue: Queue::default(), wall, steady: Instant::now() };
        for _ in 0..count {
            fixture.push(3600);
        }
        fixture
    }

    fn push(&mut self, life: u64) -> u16 {
        let message_id = Some(format!("m{}", self.queue.last_sequence + 1));
        let message = Arc::new(CloudMessage { message_id, ..CloudMessage::default() });
        self.queue.push(message, self.wall, self.wall + Duration::from_secs(life)).packet_id
    }

    fn advance(&mut self, by: Duration) -> Vec<String> {
        self.wall += by;
        self.steady += by;
        names(&self.queue.tidy(self.wall, self.steady))
    }

    /// What is sent, marked by `+` if it is a repetition.
    fn deliver(&mut self, link: LinkId) -> Vec<String> {
        let deliveries = self.queue.deliver(self.steady, link);
        let mark = |delivery: &Delivery| if delivery.is_repeated { "+" } else { "" };
        deliveries.iter().map(|delivery| format!("{}{}", name(&delivery.message), mark(delivery))).collect()
    }

    fn left(&self) -> Vec<String> {
        names(&self.queue.messages)
    }
}

fn name(message: &CloudMessage) -> String {
    message.message_id.clone().unwrap_or_default()
}

fn names(messages: &[Queued]) -> Vec<String> {
    messages.iter().map(|queued| name(&queued.message)).collect()
}

/// The ends of a list of settled messages; what stays is `kept`.
fn ends(settled: &[Settled]) -> Vec<&'static str> {
    let end = |settled: &Settled| match settled {
        Settled::Ended(_, ended) => ended.name(),
        Settled::Kept(_) => "kept",
    };
    settled.iter().map(end).collect()
}

#[test]
fn a_message_stays_until_it_is_acknowledged_on_the_link_that_it_went_by() {
    let mut fixture = Fixture::with(3);
    assert_eq!(fixture.deliver(LINK), ["m1", "m2", "m3"]);
    assert_eq!(fixture.deliver(LINK), [""; 0], "all are in the device's hand");
    assert!(fixture.queue.acknowledge(OTHER, 2).is_none());
    assert!(fixture.queue.acknowledge(LINK, 9).is_none());
    assert!(fixture.queue.acknowledge(LINK, 2).is_some());
    assert!(fixture.queue.acknowledge(LINK, 2).is_none(), "once");
    assert_eq!(fixture.left(), ["m1", "m3"]);
}

#[test]
fn a_lock_that_runs_out_is_not_counted() {
    let mut fixture = Fixture::with(2);
    fixture.deliver(LINK);
    fixture.queue.acknowledge(LINK, 1);
    for _ in 0..2 * MAX_DELIVERY_COUNT {
        assert_eq!(fixture.queue.next_unlock(), Some(fixture.steady + LOCK));
        assert_eq!(fixture.advance(LOCK - Duration::from_millis(1)), [""; 0]);
        assert_eq!(fixture.deliver(LINK), [""; 0]);
        assert_eq!(fixture.advance(Duration::from_millis(1)), [""; 0]);
        assert_eq!(fixture.queue.next_unlock(), None);
        assert_eq!(fixture.deliver(LINK), ["m2+"]);
    }
    assert_eq!(fixture.queue.messages()[0].delivery_count, 0);
    assert!(fixture.queue.acknowledge(LINK, 2).is_some());
}

#[test]
fn an_acknowledgement_counts_though_the_lock_has_run_out() {
    let mut fixture = Fixture::with(1);
    fixture.deliver(LINK);
    fixture.advance(LOCK);
    assert!(fixture.queue.acknowledge(LINK, 1).is_some());
}

#[test]
fn a_link_that_ends_gives_back_what_it_had_in_hand_so_many_times() {
    let mut fixture = Fixture::with(2);
    for count in 1..MAX_DELIVERY_COUNT {
        let link = LinkId(count.into());
        let expected = if count == 1 { ["m1", "m2"] } else { ["m1+", "m2+"] };
        assert_eq!(fixture.deliver(link), expected, "in order");
        assert_eq!(ends(&fixture.queue.release(OTHER.max(LinkId(99)))), [""; 0], "another link");
        assert_eq!(ends(&fixture.queue.release(link)), ["kept", "kept"]);
        assert_eq!(ends(&fixture.queue.release(link)), [""; 0], "once");
        assert!(fixture.queue.messages().iter().all(|queued| queued.delivery_count == count));
    }
    fixture.deliver(LINK);
    fixture.queue.acknowledge(LINK, 1);
    assert_eq!(ends(&fixture.queue.release(LINK)), ["DeliveryCountExceeded"]);
    assert!(fixture.queue.is_empty());
}

#[test]
fn a_message_expires_in_nobodys_hand() {
    let mut fixture = Fixture::with(0);
    fixture.push(10);
    fixture.push(5);
    fixture.push(100);
    assert_eq!(fixture.queue.next_expiry(), Some(fixture.wall + Duration::from_secs(5)));
    assert_eq!(fixture.advance(Duration::from_secs(4)), [""; 0]);
    assert_eq!(fixture.advance(Duration::from_secs(1)), ["m2"]);
    fixture.deliver(LINK);
    assert_eq!(fixture.queue.next_expiry(), None);
    assert_eq!(fixture.advance(Duration::from_secs(10)), [""; 0], "m1 is with the device, which may complete it");
    assert_eq!(ends(&fixture.queue.release(LINK)), ["kept", "kept"]);
    assert_eq!(fixture.advance(Duration::ZERO), ["m1"]);
    assert_eq!(fixture.left(), ["m3"]);
}

#[test]
fn a_token_stands_for_one_message_until_its_lock_runs_out() {
    let lock = Duration::from_secs(5);
    for (disposition, end, left) in [
        (Disposition::Complete, "Success", &["m2"][..]),
        (Disposition::Reject, "Rejected", &["m2"]),
        (Disposition::Abandon, "kept", &["m1", "m2"]),
    ] {
        let mut fixture = Fixture::with(2);
        let received = fixture.queue.receive(fixture.steady, 7, lock).map(|queued| name(&queued.message));
        assert_eq!(received.as_deref(), Some("m1"));
        assert_eq!(fixture.deliver(LINK), ["m2"]);
        assert!(fixture.queue.receive(fixture.steady, 8, lock).is_none());
        assert!(fixture.queue.settle(8, disposition).is_none());
        let settled = fixture.queue.settle(7, disposition).expect("a lock");
        assert_eq!(ends(&[settled]), [end]);
        assert_eq!(fixture.left(), left);
        assert!(fixture.queue.settle(7, disposition).is_none(), "once");
    }
    let mut fixture = Fixture::with(1);
    fixture.queue.receive(fixture.steady, 7, lock);
    fixture.advance(lock);
    assert!(fixture.queue.settle(7, Disposition::Complete).is_none(), "too late");
    for count in 1..=MAX_DELIVERY_COUNT {
        fixture.queue.receive(fixture.steady, 7, lock);
        let settled = fixture.queue.settle(7, Disposition::Abandon).expect("a lock");
        let expected = if count < MAX_DELIVERY_COUNT { "kept" } else { "DeliveryCountExceeded" };
        assert_eq!(ends(&[settled]), [expected], "{count}");
    }
}

#[test]
fn a_purge_takes_what_the_device_has_in_hand_too() {
    let mut fixture = Fixture::with(3);
    fixture.deliver(LINK);
    fixture.push(5);
    assert_eq!(names(&fixture.queue.purge()), ["m1", "m2", "m3", "m4"]);
    assert!(fixture.queue.acknowledge(LINK, 1).is_none());
    assert!(ends(&fixture.queue.release(LINK)).is_empty());
    assert_eq!(fixture.push(5), 5);
}

#[test]
fn what_is_completed_by_being_sent_leaves_at_once() {
    let mut fixture = Fixture::with(2);
    fixture.queue.receive(fixture.steady, 7, LOCK);
    assert_eq!(names(&fixture.queue.deliver_for_good()), ["m2"]);
    assert_eq!(fixture.left(), ["m1"]);
}

#[test]
fn packet_ids_go_round_and_are_not_given_twice() {
    let mut fixture = Fixture::with(1);
    for _ in 1..u16::MAX {
        let packet_id = fixture.push(3600);
        fixture.deliver(LINK);
        assert!(fixture.queue.acknowledge(LINK, packet_id).is_some());
    }
    assert_eq!(fixture.push(3600), 2, "1 is in use, 0 is none");
}

#[test]
fn a_restart_keeps_the_order_and_the_counts_but_no_lock() {
    let mut fixture = Fixture::with(3);
    fixture.deliver(LINK);
    fixture.queue.release(LINK);
    fixture.deliver(OTHER);
    let stored = fixture.queue.messages().iter().rev().map(|queued| {
        let mut restored =
            Queued::new(queued.sequence, queued.packet_id, queued.message.clone(), queued.enqueued, queued.expiry);
        restored.delivery_count = queued.delivery_count;
        restored
    });
    fixture.queue = Queue::restored(stored.collect());
    assert_eq!(fixture.deliver(LinkId(3)), ["m1", "m2", "m3"]);
    assert!(fixture.queue.messages().iter().all(|queued| queued.delivery_count == 1));
    assert_eq!(fixture.push(5), 4);
}

#[derive(Debug, Clone)]
enum Step {
    Push(u64),
    Deliver(u64),
    Acknowledge(u64, u16),
    Release(u64),
    Receive(u128),
    Settle(u128, Disposition),
    Advance(u64),
    Purge,
}

fn any_step() -> impl Strategy<Value = Step> {
    let disposition = prop::sample::select(vec![Disposition::Complete, Disposition::Reject, Disposition::Abandon]);
    prop_oneof![
        4 => (1..200_u64).prop_map(Step::Push),
        3 => (0..3_u64).prop_map(Step::Deliver),
        3 => (0..3_u64, 0..60_u16).prop_map(|(link, id)| Step::Acknowledge(link, id)),
        2 => (0..3_u64).prop_map(Step::Release),
        1 => (0..3_u128).prop_map(Step::Receive),
        1 => (0..3_u128, disposition).prop_map(|(token, disposition)| Step::Settle(token, disposition)),
        2 => (0..100_u64).prop_map(Step::Advance),
        1 => Just(Step::Purge),
    ]
}

proptest! {
    #[test]
    fn every_message_leaves_once_and_the_rest_stays_in_order(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut fixture = Fixture::with(0);
        let (mut pushed, mut left) = (0, Vec::new());
        for step in steps {
            match step {
                Step::Push(life) if !fixture.queue.is_full() => {
                    pushed += 1;
                    fixture.push(life);
                }
                Step::Push(_) => prop_assert_eq!(fixture.queue.len(), MAX_DEPTH),
                Step::Deliver(link) => drop(fixture.deliver(LinkId(link))),
                Step::Acknowledge(link, id) => left.extend(fixture.queue.acknowledge(LinkId(link), id)),
                Step::Release(link) => left.extend(ended(fixture.queue.release(LinkId(link)))),
                Step::Receive(token) => drop(fixture.queue.receive(fixture.steady, token, LOCK).map(drop)),
                Step::Settle(token, disposition) => {
                    left.extend(ended(fixture.queue.settle(token, disposition).into_iter().collect()));
                }
                Step::Advance(seconds) => {
                    fixture.wall += Duration::from_secs(seconds);
                    fixture.steady += Duration::from_secs(seconds);
                    left.extend(fixture.queue.tidy(fixture.wall, fixture.steady));
                    prop_assert!(fixture.queue.next_expiry().is_none_or(|due| due > fixture.wall));
                    prop_assert!(fixture.queue.next_unlock().is_none_or(|due| due > fixture.steady));
                }
                Step::Purge => left.extend(fixture.queue.purge()),
            }
            let sequences: Vec<_> = fixture.queue.messages().iter().map(|queued| queued.sequence).collect();
            prop_assert!(sequences.is_sorted());
            prop_assert!(fixture.queue.messages().iter().all(|queued| queued.delivery_count < MAX_DELIVERY_COUNT));
            let mut all: Vec<_> = left.iter().map(|queued: &Queued| queued.sequence).chain(sequences).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (1..=pushed).collect::<Vec<u64>>());
        }
    }
}

fn ended(settled: Vec<Settled>) -> Vec<Queued> {
    let ended = settled.into_iter().filter_map(|settled| match settled {
        Settled::Ended(queued, _) => Some(queued),
        Settled::Kept(_) => None,
    });
    ended.collect()
}
