//! Direct methods: sent to a device that listens, answered by it, by its leaving, or by the clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::RequestId;
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::topic::{Subscription, ToDevice};

use super::{Answer, Hub, LinkId, LinkOutput, Now, Output, not_found};

/// Calls waiting for one device or module. Azure has such a limit (403800) but does not publish it; ours bounds what a slow
/// device can make the hub hold.
const MAX_CALLS: usize = 100;

/// Calls in flight, by their number, which is also the `$rid`.
pub(super) struct Calls<R> {
    next: u64,
    calls: BTreeMap<u64, Call<R>>,
    by_address: HashMap<Address, BTreeSet<u64>>,
    deadlines: BTreeSet<(Instant, u64)>,
}

struct Call<R> {
    reply: R,
    address: Address,
    method: DirectMethod,
    state: CallState,
    deadline: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum CallState {
    /// The device is offline or does not listen yet; until its connect time-out.
    WaitingForDevice,
    /// Sent on this link; until its response time-out.
    Sent(LinkId),
}

impl<R> Default for Calls<R> {
    fn default() -> Calls<R> {
        Calls { next: 1, calls: BTreeMap::new(), by_address: HashMap::new(), deadlines: BTreeSet::new() }
    }
}

impl<R> Calls<R> {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn add(&mut self, call: Call<R>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.deadlines.insert((call.deadline, number));
        self.by_address.entry(call.address.clone()).or_default().insert(number);
        self.calls.insert(number, call);
        number
    }

    fn remove(&mut self, number: u64) -> Option<Call<R>> {
        let call = self.calls.remove(&number)?;
        self.deadlines.remove(&(call.deadline, number));
        if let Some(numbers) = self.by_address.get_mut(&call.address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&call.address);
            }
        }
        Some(call)
    }

    fn of(&self, address: &Address) -> Vec<u64> {
        self.by_address.get(address).map(|numbers| numbers.iter().copied().collect()).unwrap_or_default()
    }

    fn sent(&mut self, number: u64, link: LinkId, deadline: Instant) {
        if let Some(call) = self.calls.get_mut(&number) {
            self.deadlines.remove(&(call.deadline, number));
            self.deadlines.insert((deadline, number));
            call.deadline = deadline;
            call.state = CallState::Sent(link);
        }
    }
}

impl<R> Hub<R> {
    pub(super) fn call_method(&mut self, now: Now, reply: R, id: &Address, method: DirectMethod) {
        let Some(entity) = self.entities.get(id) else {
            // It may have been there until a deletion that is not durable yet.
            return self.gated.push_back(Output::Reply(reply, Err(not_found(id))));
        };
        if self.calls.by_address.get(id).is_some_and(|numbers| numbers.len() >= MAX_CALLS) {
            let text = format!("{MAX_CALLS} calls are already waiting for {id}");
            let error = HubError::new(ErrorCode::DeviceMaximumInflightMethodExceeded, text);
            return self.immediate.push_back(Output::Reply(reply, Err(error)));
        }
        let listening = entity.listening(Subscription::Methods);
        if listening.is_none() && method.connect_timeout() == 0 {
            return self.immediate.push_back(Output::Reply(reply, Err(not_online())));
        }
        let deadline = now.steady + Duration::from_secs(method.connect_timeout().into());
        let state = CallState::WaitingForDevice;
        let number = self.calls.add(Call { reply, address: id.clone(), method, state, deadline });
        if let Some(link) = listening
            && let Some(output) = self.send_call(now, number, link)
        {
            self.immediate.push_back(output);
        }
    }

    /// Send what waited for this device, if it listens now, and tell who else waits. Gated: the subscription that they
    /// waited for is acknowledged first.
    pub(super) fn release_waiting_calls(&mut self, now: Now, id: &Address) {
        let Some(link) = self.entities.get(id).and_then(|entity| entity.listening(Subscription::Methods)) else {
            return;
        };
        for number in self.calls.of(id) {
            if self.calls.calls.get(&number).is_some_and(|call| call.state == CallState::WaitingForDevice)
                && let Some(output) = self.send_call(now, number, link)
            {
                self.gated.push_back(output);
            }
        }
        self.gated.push_back(Output::Listens(id.clone()));
    }

    fn send_call(&mut self, now: Now, number: u64, link: LinkId) -> Option<Output<R>> {
        let call = self.calls.calls.get(&number)?;
        let rid = RequestId::parse(&format!("{number:x}")).expect("hexadecimal digits are a request id");
        let topic = ToDevice::Method { name: call.method.method_name.clone(), rid }.format();
        let payload = call.method.payload.to_string().into();
        let deadline = now.steady + Duration::from_secs(call.method.response_timeout().into());
        self.calls.sent(number, link, deadline);
        Some(Output::Link(link, LinkOutput::Publish { topic, payload }))
    }

    pub(super) fn method_answered(&mut self, id: &Address, rid: &RequestId, status: i32, payload: &Bytes) {
        // A late answer, or one to another device's call, has no call here and is dropped.
        let Ok(number) = u64::from_str_radix(rid.as_str(), 16) else { return };
        let ours = self.calls.calls.get(&number);
        if ours.is_none_or(|call| call.address != *id || call.state == CallState::WaitingForDevice) {
            return;
        }
        let Some(call) = self.calls.remove(number) else { return };
        let answer = MethodResponse::from_device(status, payload).map(Answer::Method);
        self.immediate.push_back(Output::Reply(call.reply, answer));
    }

    /// The link is gone or taken over: calls that were sent on it end, calls that wait for the device go on waiting.
    pub(super) fn end_calls_to(&mut self, id: &Address, error: &HubError) {
        let gone = matches!(error.code, ErrorCode::DeviceNotFound | ErrorCode::ModuleNotFound);
        for number in self.calls.of(id) {
            let sent = self.calls.calls.get(&number).is_some_and(|call| call.state != CallState::WaitingForDevice);
            if (sent || gone)
                && let Some(call) = self.calls.remove(number)
            {
                let outputs = if gone { &mut self.gated } else { &mut self.immediate };
                outputs.push_back(Output::Reply(call.reply, Err(error.clone())));
            }
        }
    }

    /// Whether calls to the device are waiting or out.
    pub(super) fn has_calls(&self, id: &Address) -> bool {
        self.calls.by_address.contains_key(id)
    }

    pub(super) fn end_overdue_calls(&mut self, now: Now) {
        while let Some((_, number)) = self.calls.deadlines.first().copied().filter(|(due, _)| *due <= now.steady) {
            let Some(call) = self.calls.remove(number) else { return };
            let error = match call.state {
                CallState::WaitingForDevice => not_online(),
                CallState::Sent(_) => {
                    HubError::new(ErrorCode::GatewayTimeout, "Timed out waiting for the response from device.")
                }
            };
            self.immediate.push_back(Output::Reply(call.reply, Err(error)));
        }
    }
}

fn not_online() -> HubError {
    HubError::new(ErrorCode::DeviceNotOnline, "Timed out waiting for device to connect.")
}
