//! Feeds the hub, writes what it decides, and lets answers go when they may.
//!
//! The hub has in memory whom it deals with. An input that concerns another device or module waits until that is read,
//! beside what else the hub has to do; inputs of one device or module stay in order.

mod due;
mod parking;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use durable_store::{Store, StoreError};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::events::{EventKind, EventLog, HubEvent};
use crate::hub::{
    Answer, Change, Credentials, Entity, Hub, Input, LinkId, LinkInput, LinkOutput, Now, Operation, Output,
};
use crate::rehearsal::Rehearsal;
use crate::scan::Reads;
use crate::store;
use due::DueQueues;
use parking::Parking;

/// Inputs waiting for the hub. Senders wait when it is full, which slows sockets down rather than growing.
const INPUT_QUEUE: usize = 1024;
/// Inputs handled before their changes are written together.
const BATCH: usize = 256;
/// Batches being written. When there are more, the disk is slower than the devices, and inputs wait.
const MAX_WRITES: usize = 8;
/// Messages waiting for one device's socket: its calls in flight, as many notices, and a whole queue of cloud-to-device
/// messages. A device that reads slower is cut.
const LINK_QUEUE: usize = 256;
/// Reads of devices and modules under way at once.
const MAX_LOADS: usize = 2;
/// Devices that listen, told to who waits for them. Who falls further behind takes it that all of them do.
const ARRIVALS: usize = 4096;
/// Devices that have changed, told to who waits for some that are so and so. Who falls further behind looks at all.
const CHANGES: usize = 16_384;
/// Look at the clock at least so often: the wall's may jump past a token's end.
const IDLE: Duration = Duration::from_secs(60);

type Reply = oneshot::Sender<Result<Answer, HubError>>;

enum Message {
    Input(Input<Reply>),
    Attach(LinkId, LinkSender),
}

/// The way to the hub, for listeners, jobs and whoever runs it. Cheap to clone.
#[derive(Clone)]
pub struct HubHandle {
    inputs: mpsc::Sender<Message>,
    next_link: Arc<AtomicU64>,
    events: EventLog,
    arrivals: broadcast::Sender<Address>,
    changes: broadcast::Sender<Address>,
    failure: watch::Receiver<Option<Arc<StoreError>>>,
    reads: Reads,
    rehearsal: Rehearsal,
}

/// The hub's way to a connection.
#[derive(Clone)]
struct LinkSender {
    /// Boxed, since a queue has room for dozens from the beginning.
    outputs: mpsc::Sender<Box<LinkOutput>>,
    /// Cancelled when something did not reach the device, because the queue was full or it could not be stored: the
    /// connection must end, as the device will ask again on the next one.
    lost: CancellationToken,
}

/// A connection's end of both ways.
pub(crate) struct LinkEnd {
    pub(crate) id: LinkId,
    pub(crate) outputs: mpsc::Receiver<Box<LinkOutput>>,
    pub(crate) lost: CancellationToken,
}

impl HubHandle {
    /// Ask the hub.
    ///
    /// # Errors
    /// What the hub answers; 503001 if it is stopping or cannot write.
    pub async fn request(&self, operation: Operation) -> Result<Answer, HubError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.inputs.send(Message::Input(Input::Request { reply, operation })).await;
        sent.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Resolves when the hub could not write its store, with the reason. It must be stopped then: it answers nothing
    /// but errors any more, as what it has in memory is not what is stored.
    pub async fn failed(&self) -> Arc<StoreError> {
        let mut failure = self.failure.clone();
        let seen = failure.wait_for(Option::is_some).await;
        match seen.ok().and_then(|reason| reason.clone()) {
            Some(reason) => reason,
            // The hub has stopped without a failure, so there will be none.
            None => std::future::pending().await,
        }
    }

    /// The way past the hub, for who reads many devices.
    ///
    /// # Errors
    /// 503001 if the hub could not write its store.
    pub(crate) fn reads(&self) -> Result<&Reads, HubError> {
        match self.failure.borrow().is_none() {
            true => Ok(&self.reads),
            false => Err(unwritten()),
        }
    }

    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Tells of each device or module that begins to listen for methods, from now on; of some of them repeatedly.
    pub(crate) fn arrivals(&self) -> broadcast::Receiver<Address> {
        self.arrivals.subscribe()
    }

    /// Tells of each device or module whose identity, twin or connection has changed, from now on and after the commit.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Address> {
        self.changes.subscribe()
    }

    /// What is rehearsed on this hub.
    pub fn rehearsal(&self) -> &Rehearsal {
        &self.rehearsal
    }

    pub(crate) fn rehearsing(self, rehearsal: Rehearsal) -> HubHandle {
        HubHandle { rehearsal, ..self }
    }

    /// Announce a new connection.
    pub(crate) async fn attach(&self) -> Option<LinkEnd> {
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let (sender, outputs) = mpsc::channel(LINK_QUEUE);
        let lost = CancellationToken::new();
        let link = LinkSender { outputs: sender, lost: lost.clone() };
        self.inputs.send(Message::Attach(id, link)).await.ok()?;
        Some(LinkEnd { id, outputs, lost })
    }

    /// Whether the hub would let a device or a module in that shows this.
    pub(crate) async fn admits(&self, id: Address, credentials: Credentials) -> bool {
        self.request(Operation::Authenticate { id, credentials }).await.is_ok()
    }

    /// `false` if the hub has stopped.
    pub(crate) async fn link_input(&self, link: LinkId, input: LinkInput) -> bool {
        self.inputs.send(Message::Input(Input::Link(link, input))).await.is_ok()
    }
}

/// Start the hub's task. It ends when `cancel` is, after writing what is decided.
pub(crate) fn spawn(
    hub: Hub<Reply>,
    reads: Reads,
    cancel: CancellationToken,
) -> (HubHandle, tokio::task::JoinHandle<()>) {
    let (inputs, receiver) = mpsc::channel(INPUT_QUEUE);
    let (failed, failure) = watch::channel(None);
    let (events, (arrivals, _), (changes, _)) =
        (EventLog::new(), broadcast::channel(ARRIVALS), broadcast::channel(CHANGES));
    let ways = Ways { events: events.clone(), arrivals: arrivals.clone(), changes: changes.clone() };
    let store = reads.store.clone();
    let (pending, durable) = (AtomicUsize::new(0), AtomicU64::new(0));
    let rehearsal = Rehearsal::default();
    let next_link = Arc::new(AtomicU64::new(1));
    let handle = HubHandle { inputs, next_link, events, arrivals, changes, failure, reads, rehearsal };
    let driver = Driver {
        hub,
        store: store.clone(),
        links: HashMap::new(),
        ways,
        writes: Arc::new(Writes { pending, durable, ended: Notify::new(), failed }),
        parking: Parking::default(),
        due: DueQueues::new(),
        loads: FuturesUnordered::new(),
    };
    driver.watch_check();
    (handle, tokio::spawn(driver.run(receiver, cancel)))
}

struct Driver {
    hub: Hub<Reply>,
    store: Store,
    links: HashMap<LinkId, LinkSender>,
    ways: Ways,
    writes: Arc<Writes>,
    parking: Parking,
    due: DueQueues,
    loads: FuturesUnordered<BoxFuture<'static, Loaded>>,
}

/// What the store has of a device or a module, or why it is nothing of use.
type Stored = Result<Option<Entity>, String>;

/// What was read for the hub.
enum Loaded {
    Entities(Vec<Address>, Result<Vec<Stored>, StoreError>),
    Due(Result<due::Found, StoreError>),
}

/// What the hub's task and the store's thread know of the writes between them.
struct Writes {
    /// Queued and not yet committed. While there are any, gated outputs queue behind them.
    pending: AtomicUsize,
    /// The number of the last changes that are committed.
    durable: AtomicU64,
    /// Told whenever there is one less.
    ended: Notify,
    /// Why one failed. What the hub decided since rests on what is not stored, so from then on nobody hears any of it.
    failed: watch::Sender<Option<Arc<StoreError>>>,
}

impl Writes {
    fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    fn have_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }

    fn fail(&self, error: StoreError) {
        tracing::error!(%error, "the hub's store cannot be used");
        self.failed.send_if_modified(|failure| {
            let is_first = failure.is_none();
            failure.get_or_insert_with(|| Arc::new(error));
            is_first
        });
    }

    fn end_one(&self) {
        self.pending.fetch_sub(1, Ordering::AcqRel);
        self.ended.notify_one();
    }
}

/// Where outputs go that are for anybody who listens.
#[derive(Clone)]
struct Ways {
    events: EventLog,
    arrivals: broadcast::Sender<Address>,
    changes: broadcast::Sender<Address>,
}

impl Ways {
    /// What a change is of that decides whether a condition holds, if anybody wants to know.
    fn changed(&self, changes: &[Change]) -> Vec<Address> {
        if self.changes.receiver_count() == 0 {
            return Vec::new();
        }
        let changed = changes.iter().filter_map(|change| match change {
            Change::Identity(identity) => Some(&identity.address),
            Change::Twin(address, _) => Some(address),
            _ => None,
        });
        changed.cloned().collect()
    }
}

/// An output with its way out.
enum Delivery {
    Link(LinkSender, LinkOutput),
    Reply(Reply, Result<Answer, HubError>),
    Event(HubEvent),
    Listens(Address),
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<Message>, cancel: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            self.start_loads();
            let deadline = self.deadline(now());
            let is_written = self.writes.pending() < MAX_WRITES;
            tokio::select! {
                received = inputs.recv_many(&mut batch, BATCH), if is_written && !self.parking.is_full() => {
                    if received == 0 {
                        break;
                    }
                    let now = now();
                    for message in batch.drain(..) {
                        self.take(now, message);
                    }
                }
                Some(loaded) = self.loads.next() => self.take_loaded(now(), loaded),
                () = self.writes.ended.notified(), if !is_written => {}
                () = tokio::time::sleep_until(deadline.into()) => self.hub.handle_deadline(now()),
                () = cancel.cancelled() => break,
            }
            if !self.writes.have_failed() {
                let next_expiry = self.hub.let_go(self.writes.durable.load(Ordering::Acquire));
                self.due.note(next_expiry);
            }
            self.deliver_outcome();
        }
        self.hub.settle_up();
        self.deliver_outcome();
    }

    fn deadline(&self, now: Now) -> Instant {
        let due = self.due.next().map(|due| now.steady + (due - now.wall).to_std().unwrap_or_default());
        let idle = now.steady + IDLE;
        [self.hub.deadline(now), due].into_iter().flatten().fold(idle, Instant::min)
    }

    /// Read what is wanted in memory.
    fn start_loads(&mut self) {
        if let Some(search) = self.due.search(&self.store, now().wall) {
            self.loads.push(Box::pin(async { Loaded::Due(search.await) }));
        }
        while self.loads.len() < MAX_LOADS {
            let ids = self.parking.take_wanted();
            if ids.is_empty() {
                return;
            }
            let wanted = ids.clone();
            let read = self.store.read(move |connection| {
                let load = |id| match store::load(connection, id) {
                    // A row that holds what nobody has written is trouble for its device or module alone.
                    Err(error) if store::is_unreadable(&error) => Ok(Err(error.to_string())),
                    found => Ok(Ok(found?)),
                };
                wanted.iter().map(load).collect()
            });
            self.loads.push(Box::pin(async { Loaded::Entities(ids, read.await) }));
        }
    }

    fn take_loaded(&mut self, now: Now, loaded: Loaded) {
        match loaded {
            Loaded::Entities(ids, Ok(found)) => {
                for (id, stored) in ids.iter().zip(found) {
                    self.take_stored(now, id, stored);
                }
            }
            Loaded::Due(Ok(found)) => {
                for id in self.due.found(found) {
                    self.parking.want(&self.hub, &id.into());
                }
            }
            Loaded::Entities(ids, Err(error)) => {
                self.writes.fail(error);
                ids.iter().for_each(|id| self.refuse_all(id, &unwritten()));
            }
            Loaded::Due(Err(error)) => self.writes.fail(error),
        }
    }

    fn take_stored(&mut self, now: Now, id: &Address, stored: Stored) {
        match stored {
            Ok(stored) => self.hub.take_in(now, id, stored),
            Err(error) => {
                tracing::error!(device = %id, %error, "what is stored of a device or a module cannot be read");
                let text = format!("what is stored of {id} cannot be read, see the hub's log");
                return self.refuse_all(id, &HubError::new(ErrorCode::ServerError, text));
            }
        }
        for input in self.parking.release(id) {
            self.handle_or_park(now, input);
        }
    }

    fn handle_or_park(&mut self, now: Now, input: Input<Reply>) {
        if let Some(input) = self.parking.park(&self.hub, input) {
            self.handle(now, input);
        }
    }

    /// Answer what waits for what cannot be read.
    fn refuse_all(&mut self, id: &Address, error: &HubError) {
        for input in self.parking.release(id) {
            match input {
                Input::Link(link, LinkInput::Closed { .. }) => drop(self.links.remove(&link)),
                Input::Link(link, _) => {
                    if let Some(sender) = self.links.get(&link) {
                        sender.lost.cancel();
                    }
                }
                Input::Request { reply, .. } => drop(reply.send(Err(error.clone()))),
            }
        }
    }

    /// The store is checked while it is used, if it is large. Damage ends the hub: nothing that it says could be relied on.
    fn watch_check(&self) {
        let (checked, writes) = (self.store.checked(), self.writes.clone());
        tokio::spawn(async move {
            if let Err(error @ StoreError::Corrupt { .. }) = checked.await {
                writes.fail(error);
            }
        });
    }

    fn take(&mut self, now: Now, message: Message) {
        match message {
            Message::Attach(id, link) => {
                self.links.insert(id, link);
            }
            Message::Input(input) => self.handle_or_park(now, input),
        }
    }

    fn handle(&mut self, now: Now, input: Input<Reply>) {
        let ended = match &input {
            Input::Link(id, LinkInput::Closed { .. }) => Some(*id),
            _ => None,
        };
        self.hub.handle(now, input);
        if let Some(link) = ended {
            self.links.remove(&link);
        }
    }

    fn deliver_outcome(&mut self) {
        let outcome = self.hub.take_outcome();
        for output in outcome.immediate {
            if let Some(delivery) = self.address(output) {
                delivery.run(&self.ways);
            }
        }
        let gated: Vec<Delivery> = outcome.gated.into_iter().filter_map(|output| self.address(output)).collect();
        let changes = outcome.changes;
        if self.writes.have_failed() {
            gated.into_iter().for_each(Delivery::fail);
        } else if changes.is_empty() && self.writes.pending() == 0 {
            gated.into_iter().for_each(|delivery| delivery.run(&self.ways));
        } else if !changes.is_empty() || !gated.is_empty() {
            self.write_then_deliver(changes, gated, outcome.batch);
        }
    }

    fn write_then_deliver(&self, changes: Vec<Change>, gated: Vec<Delivery>, batch: u64) {
        self.writes.pending.fetch_add(1, Ordering::AcqRel);
        let (writes, ways) = (self.writes.clone(), self.ways.clone());
        let changed = ways.changed(&changes);
        self.store.write_then(
            move |tx| changes.iter().try_for_each(|change| store::apply(tx, change)),
            move |written| {
                match written {
                    Ok(()) => drop(writes.durable.fetch_max(batch, Ordering::AcqRel)),
                    Err(error) => writes.fail(error),
                }
                if writes.have_failed() {
                    gated.into_iter().for_each(Delivery::fail);
                } else {
                    gated.into_iter().for_each(|delivery| delivery.run(&ways));
                    // Nobody may want to know any more.
                    changed.into_iter().for_each(|address| drop(ways.changes.send(address)));
                }
                writes.end_one();
            },
        );
    }

    fn address(&self, output: Output<Reply>) -> Option<Delivery> {
        match output {
            // A connection that has ended since hears nothing more.
            Output::Link(id, output) => Some(Delivery::Link(self.links.get(&id)?.clone(), output)),
            Output::Reply(reply, answer) => Some(Delivery::Reply(reply, answer)),
            Output::Event(event) => Some(Delivery::Event(event)),
            Output::Listens(address) => Some(Delivery::Listens(address)),
        }
    }
}

impl Delivery {
    fn run(self, ways: &Ways) {
        match self {
            Delivery::Link(link, output) => {
                if let Err(mpsc::error::TrySendError::Full(_)) = link.outputs.try_send(Box::new(output)) {
                    link.lost.cancel();
                }
            }
            // Whoever asked may have left.
            Delivery::Reply(reply, answer) => drop(reply.send(answer)),
            Delivery::Event(event) => {
                if let EventKind::Connected | EventKind::Disconnected = event.kind {
                    // Nobody may want to know.
                    drop(ways.changes.send(event.address.clone()));
                }
                ways.events.push(event);
            }
            // Nobody may wait.
            Delivery::Listens(address) => drop(ways.arrivals.send(address)),
        }
    }

    /// What was decided, or what it rests on, could not be written: nobody may hear of it.
    fn fail(self) {
        match self {
            Delivery::Link(link, _) => link.lost.cancel(),
            Delivery::Reply(reply, _) => {
                drop(reply.send(Err(unwritten())));
            }
            Delivery::Event(_) | Delivery::Listens(_) => {}
        }
    }
}

fn now() -> Now {
    Now { wall: Utc::now(), steady: Instant::now() }
}

fn unwritten() -> HubError {
    HubError::new(ErrorCode::ServiceUnavailable, "the hub cannot use its store and stops, see its log")
}

fn stopping() -> HubError {
    HubError::new(ErrorCode::ServiceUnavailable, "the hub is stopping")
}
