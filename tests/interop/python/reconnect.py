"""The hub is killed and comes back: the SDK reconnects and subscribes to nothing again. Then a second connection of one
device takes the place of the first."""

import sys

from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties

from support import connect, create_device, equal, latch, main, on_methods, registry, until


def run():
    survive()
    take_over()


def survive():
    # The SDK's own pause between attempts is ten seconds.
    client = connect(create_device("survivor"), connection_retry_interval=1)
    patches, changes, messages = [], [], []
    client.on_message_received = lambda message: messages.append(message.data)
    client.on_connection_state_change = lambda: changes.append(client.connected)
    on_methods(client, {"ping": lambda payload: (200, "pong")})
    client.on_twin_desired_properties_patch_received = patches.append
    desire("before")
    until("the first change arrives", lambda: seen(patches, "before"))
    latch("message", "send", "survivor", "before", "--wait")

    print("kill the hub", flush=True)
    equal(sys.stdin.readline().strip(), "it is back")
    # Once for the loss and once for the return; by the time the first is looked at, the second may have come.
    until("the device is back", lambda: len(changes) >= 2 and client.connected, 60)
    desire("after")
    until("the second change arrives", lambda: seen(patches, "after"))
    # What was asked before the SDK's own look at the twin could still be that look's: ask once more.
    desire("later")
    until("the third change arrives", lambda: seen(patches, "later"))
    latch("message", "send", "survivor", "after", "--wait")
    until("both messages arrive", lambda: messages == [b"before", b"after"])
    equal(invoke("survivor", "ping"), (200, "pong"))
    client.shutdown()


def take_over():
    connection_string = create_device("twice")
    first = connect(connection_string, connection_retry=False)
    on_methods(first, {"which": lambda payload: (200, "first")})
    second = connect(connection_string)
    on_methods(second, {"which": lambda payload: (200, "second")})
    until("the first is cut off", lambda: not first.connected)
    equal(invoke("twice", "which"), (200, "second"))
    assert second.connected
    equal(registry.get_twin("twice").connection_state, "Connected")
    second.shutdown()


def desire(step):
    registry.update_twin("survivor", Twin(properties=TwinProperties(desired={"step": step})))


def seen(patches, step):
    return [patch for patch in patches if patch.get("step") == step]


def invoke(device_id, name):
    method = CloudToDeviceMethod(method_name=name, response_timeout_in_seconds=15, connect_timeout_in_seconds=10)
    answer = registry.invoke_device_method(device_id, method)
    return answer.status, answer.payload


main(run)
