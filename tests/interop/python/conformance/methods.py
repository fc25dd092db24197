"""Direct methods: invoked by azure-iot-hub, answered by azure-iot-device over MQTT."""

import json
import threading
import time

from azure.iot.hub.models import CloudToDeviceMethod

from suite import Suite

from support import connect, create_device, equal, on_methods, refused, registry

suite = Suite()


def device(fresh, **answers):
    device_id = fresh()
    connection_string = create_device(device_id)
    client = connect(connection_string, connection_retry=False)
    on_methods(client, answers)
    return device_id, connection_string, client


def method(name, payload=None, response=20, connect_timeout=None):
    return CloudToDeviceMethod(
        method_name=name,
        payload=payload,
        response_timeout_in_seconds=response,
        connect_timeout_in_seconds=connect_timeout,
    )


def invoke(device_id, name, *arguments, **options):
    answer = registry.invoke_device_method(device_id, method(name, *arguments, **options))
    return answer.status, answer.payload


def failed(status, code, device_id, call, timeout=None):
    """The envelope of methods: JSON text inside JSON."""
    inner = json.loads(json.loads(refused(status, registry.invoke_device_method, device_id, call))["Message"])
    equal((inner["errorCode"], inner["info"].get("timeout")), (code, timeout))
    return inner["message"]


@suite.case("any JSON is a payload", "The payload of a call is any JSON, and so is that of the answer.")
def payloads(fresh):
    device_id, _, client = device(fresh, echo=lambda payload: (200, payload))
    for payload in ("text", "grün \U0001f6aa", 1.5, True, [1, [2]], {"a": {"b": None}}):
        equal(invoke(device_id, "echo", payload), (200, payload))
    client.shutdown()


@suite.case("no payload is an empty text", "The SDK sends \"\" for a payload that is None, and that arrives.")
def no_payload(fresh):
    seen = []
    device_id, _, client = device(fresh, note=lambda payload: seen.append(payload) or (200, None))
    equal(invoke(device_id, "note"), (200, None))
    equal(seen, [""])
    client.shutdown()


@suite.case("names are decoded", "Names with escapes in the topic reach the device as they are.")
def names(fresh):
    names = ["a-b_c.d", "it's!", "x*y~z|^`", "50%", "a+b", "a#b"]
    device_id, _, client = device(fresh, **{name: lambda payload, name=name: (200, name) for name in names})
    for name in names:
        equal(invoke(device_id, name), (200, name))
    client.shutdown()


@suite.case("any integer is a status", "The status of an answer is any integer; the call is HTTP 200.")
def statuses(fresh):
    device_id, _, client = device(fresh, status=lambda payload: (payload, "x"))
    for status in (0, 200, 500, -1, 123456):
        equal(invoke(device_id, "status", status), (status, "x"))
    client.shutdown()


@suite.case("a device that is away", "A call to a device that is away is 404103 with the time-out 00:00:00.")
def offline(fresh):
    device_id = fresh()
    create_device(device_id)
    equal(failed(404, 404103, device_id, method("any"), "00:00:00"), "Timed out waiting for device to connect.")


@suite.case("an unknown device", "A call to a device that is not registered is 404001.")
def unknown(fresh):
    failed(404, 404001, fresh("nobody"), method("any"))


@suite.case("a call waits for the device", "A call with a connect time-out reaches a device that connects in time.")
def waits(fresh):
    device_id = fresh()
    connection_string = create_device(device_id)
    answers = []
    call = threading.Thread(target=lambda: answers.append(invoke(device_id, "ping", connect_timeout=20)))
    call.start()
    client = connect(connection_string)
    on_methods(client, {"ping": lambda payload: (200, "pong")})
    call.join()
    equal(answers, [(200, "pong")])
    client.shutdown()


@suite.case("a silent device", "A device that does not answer in time is 504101 with the time-out 00:00:05.")
def silent(fresh):
    device_id, _, client = device(fresh)
    start = time.monotonic()
    text = failed(504, 504101, device_id, method("unheard", response=5), "00:00:05")
    equal(text, "Timed out waiting for the response from device.")
    assert time.monotonic() - start >= 4.9
    client.shutdown()


@suite.case("time-outs have ranges", "responseTimeoutInSeconds is 5 to 300, connectTimeoutInSeconds 0 to 300.")
def ranges(fresh):
    device_id, _, client = device(fresh)
    equal(failed(400, 400004, device_id, method("m", response=4)), "responseTimeoutInSeconds must be within [5; 300].")
    failed(400, 400004, device_id, method("m", response=301))
    failed(400, 400004, device_id, method("m", connect_timeout=301))
    client.shutdown()


@suite.case("calls beside each other", "Twenty calls at once each get their own answer.")
def beside(fresh):
    device_id, _, client = device(fresh, echo=lambda payload: (200, payload))
    answers = {}
    calls = [threading.Thread(target=lambda n=n: answers.update({n: invoke(device_id, "echo", n)})) for n in range(1, 21)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    equal(answers, {n: (200, n) for n in range(1, 21)})
    client.shutdown()


@suite.case("a device that leaves during a call", "A call whose device's link ends is 404104 at once.")
def leaves(fresh):
    device_id, _, client = device(fresh)
    client.on_method_request_received = lambda request: threading.Thread(target=client.shutdown).start()
    failed(404, 404104, device_id, method("hold", response=60))


suite.run()
