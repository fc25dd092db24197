"""The wire between a device and the hub is cut: during a method, while it sends and reports, while its twin is changed. The
hub listens on another port, and this script is the wire from the port that the SDK knows."""

import json
import socket
import threading

from azure.iot.device.exceptions import ConnectionFailedError
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties

from support import connect, create_device, equal, latch, main, on_methods, refused, registry, until

SDKS_PORT = 8883
HUBS_PORT = 18883


class Wire:
    def __init__(self):
        self.ends = set()
        self.is_cut = False
        self.server = socket.create_server(("127.0.0.1", SDKS_PORT))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            device, _ = self.server.accept()
            if self.is_cut:
                device.close()
                continue
            hub = socket.create_connection(("127.0.0.1", HUBS_PORT))
            self.ends |= {device, hub}
            for source, target in ((device, hub), (hub, device)):
                threading.Thread(target=self.pass_on, args=[source, target], daemon=True).start()

    def pass_on(self, source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            self.drop(end)

    def drop(self, end):
        self.ends.discard(end)
        try:
            # Wakes whoever reads it.
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def cut(self):
        self.is_cut = True
        for end in list(self.ends):
            self.drop(end)

    def mend(self):
        self.is_cut = False


def run():
    wire = Wire()
    during_method(wire)
    during_report(wire)
    during_change(wire)


def device(device_id):
    return connect(create_device(device_id), connection_retry_interval=1)


def during_method(wire):
    """The caller hears of it at once, and the device is not called again."""
    client = device("called")
    calls, begun = [], threading.Event()

    def hold(request):
        if request.name == "hold":
            calls.append(request.name)
            begun.set()

    client.on_method_request_received = hold
    outcomes = []
    method = CloudToDeviceMethod(method_name="hold", response_timeout_in_seconds=60)
    call = threading.Thread(target=lambda: outcomes.append(refused(404, registry.invoke_device_method, "called", method)))
    call.start()
    begun.wait(20)
    wire.cut()
    call.join(20)
    assert outcomes and "404104" in outcomes[0], outcomes
    wire.mend()
    until("it is back", lambda: client.connected, 60)
    on_methods(client, {"ping": lambda payload: (200, "pong")})
    method = CloudToDeviceMethod(method_name="ping", response_timeout_in_seconds=20, connect_timeout_in_seconds=20)
    equal(registry.invoke_device_method("called", method).payload, "pong")
    equal(calls, ["hold"])
    client.shutdown()


def during_report(wire):
    """What is sent and reported meanwhile arrives, as the SDK tries again."""
    client = device("sender")
    received = []
    client.on_message_received = lambda message: received.append(message.data)
    latch("message", "send", "sender", "before", "--wait")
    wire.cut()
    until("the device has noticed", lambda: not client.connected)
    latch("message", "send", "sender", "meanwhile")
    sending = threading.Thread(target=insist, args=(client.send_message, "meanwhile"))
    reporting = threading.Thread(target=insist, args=(client.patch_twin_reported_properties, {"meanwhile": True}))
    for each in (sending, reporting):
        each.start()
    wire.mend()
    for each in (sending, reporting):
        each.join(60)

    def bodies():
        lines = latch("events", "--device", "sender", "--kind", "telemetry", "--json").splitlines()
        return [json.loads(line)["body"] for line in lines if line]

    until("the telemetry arrives", lambda: "meanwhile" in bodies())
    equal(registry.get_twin("sender").properties.reported["meanwhile"], True)
    until("the message from meanwhile arrives", lambda: b"meanwhile" in received)
    equal(received, [b"before", b"meanwhile"])
    client.shutdown()


def insist(call, argument):
    """Calls until there is a connection: the SDK gives up what it was asked while one fails."""

    def attempt():
        try:
            call(argument)
        except ConnectionFailedError:
            return False
        return True

    until("there is a connection", attempt, 60)


def during_change(wire):
    """The SDK reads the twin after a reconnect and makes a notice of what has changed: each change is one notice."""
    client = device("changed")
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    desire("before")
    until("the first change arrives", lambda: seen(patches, "before"))
    wire.cut()
    until("the hub has noticed", lambda: registry.get_twin("changed").connection_state == "Disconnected")
    desire("meanwhile")
    wire.mend()
    until("the change from meanwhile arrives", lambda: seen(patches, "meanwhile"), 60)
    desire("after")
    until("the last change arrives", lambda: seen(patches, "after"))
    equal([len(seen(patches, step)) for step in ("before", "meanwhile", "after")], [1, 1, 1])
    versions = [patch["$version"] for patch in patches if "step" in patch]
    equal(versions, sorted(versions))
    client.shutdown()


def desire(step):
    registry.update_twin("changed", Twin(properties=TwinProperties(desired={"step": step})))


def seen(patches, step):
    return [patch for patch in patches if patch.get("step") == step]


main(run)
