"""Messages in both directions at a device of azure-iot-device, and azure-iot-hub's calls for purge and feedback."""

import json

from azure.iot.device import IoTHubDeviceClient, Message
from azure.iot.hub import IoTHubHttpRuntimeManager

from suite import Suite

from support import CA, SERVICE_STRING, connect, create_device, equal, latch, refused, registry, until

suite = Suite()
runtime = IoTHubHttpRuntimeManager.from_connection_string(SERVICE_STRING)


def received(device_id, count):
    """The device's telemetry as the hub has it, once there is so much: it is shown a little after its PUBACK."""

    def ask():
        lines = latch("events", "--device", device_id, "--kind", "telemetry", "--json").splitlines()
        messages = [json.loads(line) for line in lines if line]
        return len(messages) >= count and messages

    return until("the telemetry is shown", ask)


def send(device_id, body, *options):
    return json.loads(latch("message", "send", device_id, body, *options, "--json"))


def listen(connection_string, **options):
    client = IoTHubDeviceClient.create_from_connection_string(connection_string, server_verification_cert=CA, **options)
    messages = []
    client.on_message_received = messages.append
    client.connect()
    return client, messages


@suite.case("telemetry with its properties", "System properties are $.-keys of the bag; all are percent-encoded.")
def telemetry(fresh):
    device_id = fresh()
    client = connect(create_device(device_id))
    message = Message("{}", "id 1", "utf-8", "application/json")
    message.correlation_id, message.user_id = "c/1", "ann"
    odd = {"a b": "c d", "a&b=c": "x&y", "plus+#": "+#?/", "grün": "\U0001f6aa", "empty": ""}
    message.custom_properties.update(odd)
    client.send_message(message)
    client.shutdown()
    (shown,) = received(device_id, 1)
    equal(shown["properties"], odd)
    system = shown["systemProperties"]
    names = ("message-id", "correlation-id", "user-id", "content-type", "content-encoding")
    equal([system[name] for name in names], ["id 1", "c/1", "ann", "application/json", "utf-8"])


@suite.case("security messages are marked", "set_as_security_message is $.ifid in the bag, which is iothub-interface-id.")
def security(fresh):
    device_id = fresh()
    client = connect(create_device(device_id))
    message = Message("x")
    message.set_as_security_message()
    client.send_message(message)
    client.shutdown()
    (shown,) = received(device_id, 1)
    equal(shown["systemProperties"]["iothub-interface-id"], "urn:azureiot:Security:SecurityAgent:1")


@suite.case("messages keep their order", "Telemetry reaches the hub in the order in which it was sent, each once.")
def order(fresh):
    device_id = fresh()
    client = connect(create_device(device_id))
    for number in range(20):
        client.send_message(str(number))
    client.shutdown()
    equal([int(each["body"]) for each in received(device_id, 20)], list(range(20)))


@suite.case("a message with its properties", "The topic of a message carries its system properties and iothub-ack.")
def message(fresh):
    device_id = fresh()
    client, messages = listen(create_device(device_id))
    send(device_id, "hello", "--message-id", "m#1", "--correlation-id", "c/1", "--user-id", "ann", "--ack", "full",
         "--content-type", "text/plain", "--content-encoding", "utf-8", "--property", "a b=c&d", "--wait")
    until("it arrives", lambda: messages)
    got = messages[0]
    equal((got.data, got.message_id, got.correlation_id, got.user_id), (b"hello", "m#1", "c/1", "ann"))
    equal((got.content_type, got.content_encoding, got.ack), ("text/plain", "utf-8", "full"))
    equal(got.custom_properties, {"a b": "c&d"})
    client.shutdown()


@suite.case("messages wait", "Messages for a device that is away come in their order once it is there.")
def waiting(fresh):
    device_id = fresh()
    connection_string = create_device(device_id)
    for body in "abc":
        send(device_id, body)
    equal(registry.get_device(device_id).cloud_to_device_message_count, 3)
    client, messages = listen(connection_string)
    until("all arrive", lambda: len(messages) == 3)
    equal([each.data for each in messages], [b"a", b"b", b"c"])
    until("all are completed", lambda: registry.get_twin(device_id).cloud_to_device_message_count == 0)
    client.shutdown()


@suite.case("bodies are bytes", "A body is whatever bytes were sent, empty among them.")
def empty(fresh):
    device_id = fresh()
    client, messages = listen(create_device(device_id))
    send(device_id, "", "--wait")
    send(device_id, "grün", "--wait")
    until("both arrive", lambda: len(messages) == 2)
    equal([each.data for each in messages], [b"", "grün".encode()])
    client.shutdown()


@suite.case("a queue is purged", "DELETE /devices/{id}/commands answers how many messages went, and they never come.")
def purge(fresh):
    device_id = fresh()
    connection_string = create_device(device_id)
    for body in "ab":
        send(device_id, body)
    result = registry.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(device_id)
    equal((result.device_id, result.total_messages_purged, result.module_id), (device_id, 2, None))
    client, messages = listen(connection_string)
    send(device_id, "after", "--wait")
    until("it arrives", lambda: messages)
    equal([each.data for each in messages], [b"after"])
    client.shutdown()


@suite.case("a purge needs a device", "A purge of an unknown device's queue is 404 DeviceNotFound.")
def purge_unknown(fresh):
    calls = registry.protocol.cloud_to_device_messages
    body = refused(404, calls.purge_cloud_to_device_message_queue, fresh("nobody"))
    assert "DeviceNotFound" in body, body


@suite.case("feedback is taken in batches", "GET feedback is 204 or 200 with a lock; DELETE completes, POST abandons.", alone=True)
def feedback(fresh):
    def take():
        return runtime.protocol.cloud_to_device_messages.receive_feedback_notification(raw=True).response

    while (batch := take()).status_code == 200:
        runtime.complete_feedback_notification(batch.headers["ETag"].strip('"'))
    equal(batch.status_code, 204)

    device_id = fresh()
    client, _ = listen(create_device(device_id))
    send(device_id, "x", "--message-id", "m1", "--ack", "full", "--wait")
    client.shutdown()
    first = take()
    equal(first.headers["Content-Type"].split(";")[0], "application/vnd.microsoft.iothub.feedback.json")
    equal([(each["originalMessageId"], each["statusCode"], each["deviceId"]) for each in first.json()],
          [("m1", "Success", device_id)])
    equal(first.json()[0]["deviceGenerationId"], registry.get_device(device_id).generation_id)
    equal(take().status_code, 204)
    runtime.abandon_feedback_notification(first.headers["ETag"].strip('"'))
    second = take()
    equal(second.json(), first.json())
    runtime.complete_feedback_notification(second.headers["ETag"].strip('"'))
    equal(take().status_code, 204)


suite.run()
