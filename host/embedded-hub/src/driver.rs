//! Feeds the hub, writes what it decides, and lets answers go when they may.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use durable_store::{Store, StoreError};
use iothub_protocol::error::{ErrorCode, HubError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::events::{EventLog, HubEvent};
use crate::hub::{Answer, Hub, Input, LinkId, LinkInput, LinkOutput, Now, Operation, Output};
use crate::store;

/// Inputs waiting for the hub. Senders wait when it is full, which slows sockets down rather than growing.
const INPUT_QUEUE: usize = 1024;
/// Inputs handled before their changes are written together.
const BATCH: usize = 256;
/// Messages waiting for one device's socket: its calls in flight and as many notices. A device that reads slower is cut.
const LINK_QUEUE: usize = 256;
/// With nothing to wait for, look at the clock so often all the same.
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
    failure: watch::Receiver<Option<Arc<StoreError>>>,
}

/// The hub's way to a connection.
#[derive(Clone)]
struct LinkSender {
    outputs: mpsc::Sender<LinkOutput>,
    /// Cancelled when the queue is full: the connection must end.
    overflow: CancellationToken,
}

/// A connection's end of both ways.
pub(crate) struct LinkEnd {
    pub(crate) id: LinkId,
    pub(crate) outputs: mpsc::Receiver<LinkOutput>,
    pub(crate) overflow: CancellationToken,
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

    /// Resolves when the hub can no longer write its store, with the reason. It must be stopped then.
    pub async fn failed(&self) -> Arc<StoreError> {
        let mut failure = self.failure.clone();
        let seen = failure.wait_for(Option::is_some).await;
        match seen.ok().and_then(|reason| reason.clone()) {
            Some(reason) => reason,
            // The hub has stopped without a failure, so there will be none.
            None => std::future::pending().await,
        }
    }

    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Announce a new connection.
    pub(crate) async fn attach(&self) -> Option<LinkEnd> {
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let (sender, outputs) = mpsc::channel(LINK_QUEUE);
        let overflow = CancellationToken::new();
        let link = LinkSender { outputs: sender, overflow: overflow.clone() };
        self.inputs.send(Message::Attach(id, link)).await.ok()?;
        Some(LinkEnd { id, outputs, overflow })
    }

    /// `false` if the hub has stopped.
    pub(crate) async fn link_input(&self, link: LinkId, input: LinkInput) -> bool {
        self.inputs.send(Message::Input(Input::Link(link, input))).await.is_ok()
    }
}

/// Start the hub's task. It ends when `cancel` is, after writing what is decided.
pub(crate) fn spawn(
    hub: Hub<Reply>,
    store: Store,
    cancel: CancellationToken,
) -> (HubHandle, tokio::task::JoinHandle<()>) {
    let (inputs, receiver) = mpsc::channel(INPUT_QUEUE);
    let (failed, failure) = watch::channel(None);
    let events = EventLog::new();
    let handle = HubHandle { inputs, next_link: Arc::new(AtomicU64::new(1)), events: events.clone(), failure };
    let driver = Driver {
        hub,
        store,
        links: HashMap::new(),
        events,
        pending: Arc::new(AtomicUsize::new(0)),
        failed: Arc::new(failed),
    };
    (handle, tokio::spawn(driver.run(receiver, cancel)))
}

struct Driver {
    hub: Hub<Reply>,
    store: Store,
    links: HashMap<LinkId, LinkSender>,
    events: EventLog,
    /// Writes queued and not yet committed. While there are any, gated outputs queue behind them.
    pending: Arc<AtomicUsize>,
    failed: Arc<watch::Sender<Option<Arc<StoreError>>>>,
}

/// An output with its way out.
enum Delivery {
    Link(LinkSender, LinkOutput),
    Reply(Reply, Result<Answer, HubError>),
    Event(HubEvent),
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<Message>, cancel: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let deadline = self.hub.deadline(now()).unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                received = inputs.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    let now = now();
                    for message in batch.drain(..) {
                        self.take(now, message);
                    }
                }
                () = tokio::time::sleep_until(deadline.into()) => self.hub.handle_deadline(now()),
                () = cancel.cancelled() => break,
            }
            self.deliver_outcome();
        }
    }

    fn take(&mut self, now: Now, message: Message) {
        match message {
            Message::Attach(id, link) => {
                self.links.insert(id, link);
            }
            Message::Input(input) => {
                let ended = match &input {
                    Input::Link(id, LinkInput::Closed { .. }) => Some(*id),
                    _ => None,
                };
                self.hub.handle(now, input);
                if let Some(link) = ended {
                    self.links.remove(&link);
                }
            }
        }
    }

    fn deliver_outcome(&mut self) {
        let outcome = self.hub.take_outcome();
        for output in outcome.immediate {
            if let Some(delivery) = self.address(output) {
                delivery.run(&self.events);
            }
        }
        let gated: Vec<Delivery> = outcome.gated.into_iter().filter_map(|output| self.address(output)).collect();
        let changes = outcome.changes;
        if changes.is_empty() && self.pending.load(Ordering::Acquire) == 0 {
            for delivery in gated {
                delivery.run(&self.events);
            }
        } else if !changes.is_empty() || !gated.is_empty() {
            self.write_then_deliver(changes, gated);
        }
    }

    fn write_then_deliver(&self, changes: Vec<crate::hub::Change>, gated: Vec<Delivery>) {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let (pending, failed, events) = (self.pending.clone(), self.failed.clone(), self.events.clone());
        self.store.write_then(
            move |tx| changes.iter().try_for_each(|change| store::apply(tx, change)),
            move |written| {
                match written {
                    Ok(()) => gated.into_iter().for_each(|delivery| delivery.run(&events)),
                    Err(error) => {
                        tracing::error!(%error, "the hub's store cannot be written");
                        gated.into_iter().for_each(Delivery::fail);
                        failed.send_if_modified(|failure| {
                            failure.is_none() && failure.replace(Arc::new(error)).is_none()
                        });
                    }
                }
                pending.fetch_sub(1, Ordering::AcqRel);
            },
        );
    }

    fn address(&self, output: Output<Reply>) -> Option<Delivery> {
        match output {
            // A connection that has ended since hears nothing more.
            Output::Link(id, output) => Some(Delivery::Link(self.links.get(&id)?.clone(), output)),
            Output::Reply(reply, answer) => Some(Delivery::Reply(reply, answer)),
            Output::Event(event) => Some(Delivery::Event(event)),
        }
    }
}

impl Delivery {
    fn run(self, events: &EventLog) {
        match self {
            Delivery::Link(link, output) => {
                if let Err(mpsc::error::TrySendError::Full(_)) = link.outputs.try_send(output) {
                    link.overflow.cancel();
                }
            }
            // Whoever asked may have left.
            Delivery::Reply(reply, answer) => drop(reply.send(answer)),
            Delivery::Event(event) => events.push(event),
        }
    }

    /// What was decided could not be written: nobody may hear of it.
    fn fail(self) {
        match self {
            Delivery::Link(link, _) => link.overflow.cancel(),
            Delivery::Reply(reply, _) => {
                let text = "the hub cannot write its store, nothing was changed, see its log";
                drop(reply.send(Err(HubError::new(ErrorCode::ServiceUnavailable, text))));
            }
            Delivery::Event(_) => {}
        }
    }
}

fn now() -> Now {
    Now { wall: Utc::now(), steady: Instant::now() }
}

fn stopping() -> HubError {
    HubError::new(ErrorCode::ServiceUnavailable, "the hub is stopping")
}
