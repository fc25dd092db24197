"""Keys that are wrong, clocks that are slow, devices that are unknown."""

import base64
import os
import time
from contextlib import contextmanager
from unittest import mock

from azure.iot.device.exceptions import CredentialError
from azure.iot.hub import IoTHubRegistryManager

from support import SERVICE_STRING, connect, create_device, equal, main, refused, registry

# Both SDKs make tokens for an hour.
TWO_HOURS = 7200


def run():
    connection_string = create_device("guarded")
    key = connection_string.rsplit("SharedAccessKey=", 1)[1]
    wrong_key = base64.b64encode(os.urandom(32)).decode()
    device_refused(connection_string.replace(key, wrong_key))
    device_refused(connection_string.replace("guarded", "nobody"))
    with slow_clock():
        device_refused(connection_string)
    connect(connection_string).shutdown()

    service_key = SERVICE_STRING.rsplit("SharedAccessKey=", 1)[1]
    wrong = IoTHubRegistryManager.from_connection_string(SERVICE_STRING.replace(service_key, wrong_key))
    body = refused(401, wrong.get_device, "guarded")
    assert "IotHubUnauthorized" in body, body
    unknown = IoTHubRegistryManager.from_connection_string(SERVICE_STRING.replace("iothubowner", "nopolicy"))
    refused(401, unknown.get_device, "guarded")
    with slow_clock():
        refused(401, registry.get_device, "guarded")
    equal(registry.get_device("guarded").device_id, "guarded")


def device_refused(connection_string):
    try:
        connect(connection_string, connection_retry=False)
    except CredentialError:
        return
    raise AssertionError("the device was let in")


@contextmanager
def slow_clock():
    """The machine's clock is two hours slow: tokens made now are of the past by the hub's."""
    real = time.time
    with mock.patch("time.time", lambda: real() - TWO_HOURS):
        yield


main(run)
