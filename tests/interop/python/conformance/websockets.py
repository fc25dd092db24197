"""MQTT by WebSocket on port 443, by azure-iot-device with websockets=True."""

import base64
import json
import os
import time

from azure.iot.device.exceptions import CredentialError
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties

from suite import Suite

from support import connect, create_device, equal, latch, on_methods, registry, until

suite = Suite()


def device(fresh, **options):
    device_id = fresh()
    return device_id, connect(create_device(device_id), websockets=True, **options)


@suite.case("a device connects by WebSocket", "The upgrade is at /$iothub/websocket, whatever port the Host names.")
def connects(fresh):
    device_id, client = device(fresh)
    equal(registry.get_twin(device_id).connection_state, "Connected")
    client.shutdown()
    until("it is shown as gone", lambda: registry.get_twin(device_id).connection_state == "Disconnected")


@suite.case("twins go by WebSocket", "Reading, reporting and notices are as over port 8883.")
def twins(fresh):
    device_id, client = device(fresh)
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    client.patch_twin_reported_properties({"a": {"b": 1}})
    registry.update_twin(device_id, Twin(properties=TwinProperties(desired={"c": 2})))
    until("the change arrives", lambda: {"c": 2, "$version": 2} in patches)
    equal(client.get_twin()["reported"], {"a": {"b": 1}, "$version": 2})
    client.shutdown()


@suite.case("methods go by WebSocket", "A call reaches a device by WebSocket, and its answer the caller.")
def methods(fresh):
    device_id, client = device(fresh)
    on_methods(client, {"echo": lambda payload: (200, payload)})
    for payload in ({"a": 1}, "x" * (128 * 1024 - 2)):
        method = CloudToDeviceMethod(method_name="echo", payload=payload, response_timeout_in_seconds=20)
        equal(registry.invoke_device_method(device_id, method).payload, payload)
    client.shutdown()


@suite.case("messages go by WebSocket", "Messages of any size within the limits go both ways, each once.")
def messages(fresh):
    device_id, client = device(fresh)
    received = []
    client.on_message_received = lambda message: received.append(message.data)
    latch("message", "send", device_id, "down", "--wait")
    until("it arrives", lambda: received == [b"down"])
    sizes = [1, 126, 65_536, 200_000]
    for size in sizes:
        client.send_message("x" * size)

    def shown():
        lines = latch("events", "--device", device_id, "--kind", "telemetry", "--json").splitlines()
        return [len(json.loads(line)["body"]) for line in lines if line]

    until("the telemetry is shown", lambda: len(shown()) >= len(sizes))
    equal(shown(), sizes)
    client.shutdown()


@suite.case("a wrong key by WebSocket", "A refused device gets CONNACK 5 by WebSocket, too.")
def wrong_key(fresh):
    connection_string = create_device(fresh())
    wrong = base64.b64encode(os.urandom(32)).decode()
    connection_string = f"{connection_string.rsplit('=', 2)[0].rsplit(';', 1)[0]};SharedAccessKey={wrong}"
    try:
        connect(connection_string, websockets=True, connection_retry=False)
    except CredentialError:
        return
    raise AssertionError("the device was let in")


@suite.case("a short keep-alive by WebSocket", "A device that says nothing but PINGREQ stays connected.")
def keep_alive(fresh):
    device_id, client = device(fresh, keep_alive=1, connection_retry=False)
    time.sleep(3)
    equal((client.connected, registry.get_twin(device_id).connection_state), (True, "Connected"))
    client.shutdown()


suite.run()
