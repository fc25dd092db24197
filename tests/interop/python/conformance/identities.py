"""The identity registry by azure-iot-hub."""

import base64
import os

from suite import Suite

from support import equal, refused, registry

suite = Suite()


def create(device_id, status="enabled", **more):
    return registry.create_device_with_sas(device_id, None, None, status, **more)


def key(length=32):
    return base64.b64encode(os.urandom(length)).decode()


@suite.case("a device is created", "PUT /devices/{id} with null keys makes two of 32 bytes and answers 200.")
def creation(fresh):
    device = create(fresh())
    keys = device.authentication.symmetric_key
    equal([len(base64.b64decode(each)) for each in (keys.primary_key, keys.secondary_key)], [32, 32])
    assert keys.primary_key != keys.secondary_key
    equal((device.status, device.connection_state, device.authentication.type), ("enabled", "Disconnected", "sas"))
    equal(device.cloud_to_device_message_count, 0)
    equal(device.capabilities.iot_edge, False)


@suite.case("the SDK reads every member", "Times of a new identity are of the year 1; statusReason is null.")
def members(fresh):
    device = create(fresh())
    for time in (device.connection_state_updated_time, device.status_updated_time, device.last_activity_time):
        equal((time.year, time.month, time.day), (1, 1, 1))
    equal(device.status_reason, None)
    assert device.generation_id.isdigit() and len(device.generation_id) == 18, device.generation_id


@suite.case("keys of one's own are kept", "PUT /devices/{id} with keys keeps them as they are.")
def own_keys(fresh):
    primary, secondary = key(), key(64)
    device_id = fresh()
    registry.create_device_with_sas(device_id, primary, secondary, "disabled", status_reason="spare")
    device = registry.get_device(device_id)
    keys = device.authentication.symmetric_key
    equal((keys.primary_key, keys.secondary_key), (primary, secondary))
    equal((device.status, device.status_reason), ("disabled", "spare"))


@suite.case("a device is created once", "PUT without If-Match of an id that is there is 409 DeviceAlreadyExists.")
def once(fresh):
    device_id = fresh()
    create(device_id)
    assert "ErrorCode:DeviceAlreadyExists" in refused(409, create, device_id)


@suite.case("an update asks for the etag", "PUT with If-Match of the present etag is 200, of a former one 412.")
def update_etag(fresh):
    device_id = fresh()
    first = create(device_id)
    keys = first.authentication.symmetric_key

    def update(etag, status):
        return registry.update_device_with_sas(device_id, etag, keys.primary_key, keys.secondary_key, status)

    second = update(first.etag, "disabled")
    equal(second.status, "disabled")
    assert second.etag != first.etag
    assert "ErrorCode:PreconditionFailed" in refused(412, update, first.etag, "enabled")
    equal(registry.get_device(device_id).status, "disabled")
    equal(update("*", "enabled").status, "enabled")


@suite.case("a deletion asks for the etag", "DELETE with If-Match of another etag is 412 and leaves the device.")
def delete_etag(fresh):
    device_id = fresh()
    device = create(device_id)
    assert "PreconditionFailed" in refused(412, registry.delete_device, device_id, "MA==")
    equal(registry.get_device(device_id).etag, device.etag)
    registry.delete_device(device_id, device.etag)
    assert "DeviceNotFound" in refused(404, registry.get_device, device_id)


@suite.case("a deletion is exactly 204", "The SDK takes 204 for DELETE and nothing else; a second one is 404.")
def deletion(fresh):
    device_id = fresh()
    create(device_id)
    equal(registry.delete_device(device_id), None)
    assert "ErrorCode:DeviceNotFound" in refused(404, registry.delete_device, device_id)


@suite.case("an odd id goes through paths", "Ids with % + # ? and others are percent-encoded in paths.")
def odd(fresh):
    device_id = fresh() + "-.+%_#*?!(),:=@$'%41"
    equal(create(device_id).device_id, device_id)
    equal(registry.get_twin(device_id).device_id, device_id)
    registry.delete_device(device_id)


@suite.case("the list has a length", "GET /devices?top=n gives n devices for 1 to 1000, and up to 1000 for other n.")
def listing(fresh):
    for _ in range(3):
        create(fresh())
    equal(len(registry.get_devices(2)), 2)
    everything = len(registry.get_devices())
    assert everything >= 3
    for odd_number in (0, 1001):
        assert len(registry.get_devices(odd_number)) >= everything


@suite.case("statistics count devices", "GET /statistics/devices counts all, enabled and disabled.", alone=True)
def statistics(fresh):
    before = registry.get_device_registry_statistics()
    create(fresh())
    create(fresh(), "disabled")
    after = registry.get_device_registry_statistics()
    equal(after.total_device_count - before.total_device_count, 2)
    equal(after.enabled_device_count - before.enabled_device_count, 1)
    equal(after.disabled_device_count - before.disabled_device_count, 1)
    equal(registry.get_service_statistics().connected_device_count, 0)


suite.run()
