"""Who may connect by azure-iot-device over MQTT, who may ask by azure-iot-hub, and what ends a connection."""

import base64
import hashlib
import hmac
import os
import time
from urllib.parse import quote

from azure.iot.device import IoTHubDeviceClient
from azure.iot.device.exceptions import CredentialError
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties

from suite import Suite

from support import CA, SERVICE_STRING, connect, create_device, equal, host_name, latch, on_methods, refused, registry, until

suite = Suite()


def device(fresh):
    device_id = fresh()
    connection_string = create_device(device_id)
    return device_id, connection_string, connection_string.rsplit("SharedAccessKey=", 1)[1]


def token(device_id, key, seconds):
    """A shared access signature that ends `seconds` from now."""
    resource = quote(f"{host_name()}/devices/{device_id}", safe="")
    expiry = int(time.time()) + seconds
    digest = hmac.new(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    return f"SharedAccessSignature sr={resource}&sig={quote(base64.b64encode(digest), safe='')}&se={expiry}"


def connect_by_token(signature, **options):
    client = IoTHubDeviceClient.create_from_sastoken(signature, server_verification_cert=CA, **options)
    client.connect()
    return client


def not_let_in(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except CredentialError:
        return
    raise AssertionError("the device was let in")


def state(device_id):
    return registry.get_twin(device_id).connection_state


@suite.case("a wrong key", "CONNACK 5 is the SDK's CredentialError.")
def wrong_key(fresh):
    _, connection_string, key = device(fresh)
    wrong = base64.b64encode(os.urandom(32)).decode()
    not_let_in(connect, connection_string.replace(key, wrong), connection_retry=False)


@suite.case("an unknown device", "A device that is not registered is refused.")
def unknown(fresh):
    device_id, connection_string, _ = device(fresh)
    not_let_in(connect, connection_string.replace(device_id, fresh("nobody")), connection_retry=False)


@suite.case("a disabled device", "A disabled device is refused, and let in once it is enabled.")
def disabled(fresh):
    device_id, connection_string, _ = device(fresh)

    def switch(status):
        identity = registry.get_device(device_id)
        keys = identity.authentication.symmetric_key
        registry.update_device_with_sas(device_id, identity.etag, keys.primary_key, keys.secondary_key, status)

    switch("disabled")
    not_let_in(connect, connection_string, connection_retry=False)
    switch("enabled")
    connect(connection_string).shutdown()


@suite.case("a token of the past", "An expired token is refused.")
def expired(fresh):
    device_id, _, key = device(fresh)
    # The SDK itself refuses to begin with a token that is over, so it ends on the way.
    signature = token(device_id, key, 1)
    client = IoTHubDeviceClient.create_from_sastoken(signature, server_verification_cert=CA, connection_retry=False)
    time.sleep(1.5)
    not_let_in(client.connect)


@suite.case("a token ends under a connection", "The hub cuts a link whose token has expired.")
def ends(fresh):
    device_id, _, key = device(fresh)
    client = connect_by_token(token(device_id, key, 2), connection_retry=False)
    until("it is cut", lambda: not client.connected)
    until("the hub shows it", lambda: state(device_id) == "Disconnected")


@suite.case("a token renewed by the application", "update_sastoken reconnects; what was subscribed to goes on.")
def renewed(fresh):
    device_id, _, key = device(fresh)
    client = connect_by_token(token(device_id, key, 3))
    on_methods(client, {"ping": lambda payload: (200, "pong")})
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    messages = []
    client.on_message_received = lambda message: messages.append(message.data)
    client.update_sastoken(token(device_id, key, 60))
    time.sleep(3.5)
    until("it is connected", lambda: client.connected)
    method = CloudToDeviceMethod(method_name="ping", response_timeout_in_seconds=15, connect_timeout_in_seconds=10)
    equal(registry.invoke_device_method(device_id, method).payload, "pong")
    registry.update_twin(device_id, Twin(properties=TwinProperties(desired={"a": 1})))
    until("the change arrives", lambda: {"a": 1, "$version": 2} in patches)
    latch("message", "send", device_id, "x", "--wait")
    until("the message arrives", lambda: messages == [b"x"])
    client.shutdown()


@suite.case("a device connects twice", "The newer connection drops the older one; the device stays Connected.")
def twice(fresh):
    device_id, connection_string, _ = device(fresh)
    first = connect(connection_string, connection_retry=False)
    second = connect(connection_string)
    until("the first is cut off", lambda: not first.connected)
    equal(state(device_id), "Connected")
    assert second.get_twin()["desired"]["$version"] >= 1
    second.shutdown()


@suite.case("a deleted device", "Deleting a device cuts its link, and it is not let in again.")
def deleted(fresh):
    device_id, connection_string, _ = device(fresh)
    client = connect(connection_string, connection_retry=False)
    registry.delete_device(device_id)
    until("it is cut off", lambda: not client.connected)
    not_let_in(connect, connection_string, connection_retry=False)


@suite.case("a short keep-alive", "A device that says nothing but PINGREQ stays connected.")
def keep_alive(fresh):
    device_id, connection_string, _ = device(fresh)
    client = connect(connection_string, keep_alive=1, connection_retry=False)
    # Beyond the one and a half intervals at which the hub would cut a silent device.
    time.sleep(3)
    equal((client.connected, state(device_id)), (True, "Connected"))
    client.shutdown()


@suite.case("a product info is no hindrance", "The user name may carry any DeviceClientType, percent-encoded.")
def product_info(fresh):
    device_id, connection_string, _ = device(fresh)
    client = connect(connection_string, product_info="gate (v1.0) & more / 50% ü")
    equal(state(device_id), "Connected")
    client.shutdown()


@suite.case("a device with an odd id", "Ids go into topics as they are.")
def odd(fresh):
    device_id = f"{fresh()}-.%_*!(),:=@'"
    client = connect(create_device(device_id))
    client.send_message("x")
    client.patch_twin_reported_properties({"a": 1})
    equal(registry.get_twin(device_id).properties.reported["a"], 1)
    client.shutdown()


@suite.case("a service with a wrong key", "A token that no key of a policy signed is 401 IotHubUnauthorized.")
def service_key(fresh):
    key = SERVICE_STRING.rsplit("SharedAccessKey=", 1)[1]
    wrong = IoTHubRegistryManager.from_connection_string(
        SERVICE_STRING.replace(key, base64.b64encode(os.urandom(32)).decode())
    )
    body = refused(401, wrong.get_device, fresh("any"))
    assert "ErrorCode:IotHubUnauthorized" in body, body


@suite.case("a service of an unknown policy", "A token whose skn names no policy is 401.")
def service_policy(fresh):
    unknown = IoTHubRegistryManager.from_connection_string(SERVICE_STRING.replace("iothubowner", "nopolicy"))
    assert "ErrorCode:IotHubUnauthorized" in refused(401, unknown.get_devices)


suite.run()
