"""Cloud-to-device messages at a device of the Python SDK: while it listens and while it is away; purge and feedback by
the service's SDK."""

import json

from azure.iot.device import IoTHubDeviceClient

from support import CA, create_device, equal, latch, main, registry, until


def run():
    connection_string = create_device("listener")
    listen(connection_string)
    catch_up(connection_string)
    purge()
    take_feedback()


def connect(connection_string):
    """A client and the messages that it gets. What came before there is a handler the SDK would not show."""
    client = IoTHubDeviceClient.create_from_connection_string(connection_string, server_verification_cert=CA)
    messages = []
    client.on_message_received = messages.append
    client.connect()
    return client, messages


def listen(connection_string):
    client, messages = connect(connection_string)
    answer = send(
        "hello", "--message-id", "m1", "--correlation-id", "c1", "--user-id", "ann", "--expiry", "600", "--ack", "full",
        "--content-type", "text/plain", "--content-encoding", "utf-8", "--property", "colour=dark red", "--wait",
    )
    equal(answer["statusCode"], "Success")
    until("the message arrives", lambda: messages)
    message = messages[0]
    equal(message.data, b"hello")
    equal((message.message_id, message.correlation_id, message.user_id), ("m1", "c1", "ann"))
    equal((message.content_type, message.content_encoding, message.ack), ("text/plain", "utf-8", "full"))
    assert message.expiry_time_utc.startswith("20"), message.expiry_time_utc
    equal(message.custom_properties, {"colour": "dark red"})
    client.shutdown()


def catch_up(connection_string):
    for body in ("a", "b", "c"):
        send(body, "--message-id", body)
    equal(registry.get_device("listener").cloud_to_device_message_count, 3)
    client, messages = connect(connection_string)
    until("the messages from meanwhile", lambda: len(messages) == 3)
    equal([message.data for message in messages], [b"a", b"b", b"c"])
    until("all are completed", lambda: registry.get_twin("listener").cloud_to_device_message_count == 0)
    client.shutdown()


def purge():
    send("x", "--message-id", "purged", "--ack", "negative")
    calls = registry.protocol.cloud_to_device_messages
    result = calls.purge_cloud_to_device_message_queue("listener")
    equal((result.device_id, result.total_messages_purged), ("listener", 1))


def take_feedback():
    calls = registry.protocol.cloud_to_device_messages
    answer = calls.receive_feedback_notification(raw=True).response
    equal(answer.status_code, 200)
    ended = [(record["originalMessageId"], record["statusCode"]) for record in answer.json()]
    equal(ended, [("m1", "Success"), ("purged", "Purged")])
    calls.complete_feedback_notification(answer.headers["ETag"].strip('"'))
    equal(calls.receive_feedback_notification(raw=True).response.status_code, 204)


def send(body, *options):
    return json.loads(latch("message", "send", "listener", body, *options, "--json"))


main(run)
