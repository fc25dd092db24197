"""Many devices in one request, by azure-iot-hub; twins among them, which the Node SDK does not offer."""

from azure.iot.hub.models import ExportImportDevice, PropertyContainer

from suite import Suite

from support import equal, refused, registry

suite = Suite()


def item(device_id, mode, **more):
    return ExportImportDevice(id=device_id, import_mode=mode, **more)


def run(*items):
    return registry.bulk_create_or_update_devices(list(items))


def failures(*items):
    """Of a request that failed in part, which the SDK takes for an answer: which devices and why."""
    result = run(*items)
    equal(result.is_successful, False)
    return [(each.device_id, each.error_code) for each in result.errors]


def create(device_id):
    return registry.create_device_with_sas(device_id, None, None, "enabled")


@suite.case("a creation brings the twin", "importMode create takes tags and desired properties.")
def with_twin(fresh):
    device_id = fresh()
    properties = PropertyContainer(desired={"level": 5})
    equal(run(item(device_id, "create", status="enabled", tags={"site": "a"}, properties=properties)).is_successful, True)
    twin = registry.get_twin(device_id)
    equal((twin.tags, twin.properties.desired["level"]), ({"site": "a"}, 5))


@suite.case("a wrong twin makes no device", "A create whose tags break a limit leaves nothing.")
def wrong_twin(fresh):
    device_id = fresh()
    wrong = item(device_id, "create", status="enabled", tags={"a.b": 1})
    equal(failures(wrong), [(device_id, "ArgumentInvalid")])
    refused(404, registry.get_device, device_id)


@suite.case("twins are changed", "importMode updateTwin merges tags and desired properties.")
def update_twin(fresh):
    device_id = fresh()
    create(device_id)
    run(item(device_id, "updateTwin", tags={"a": 1, "b": 1}))
    run(item(device_id, "updateTwin", tags={"b": 2}, properties=PropertyContainer(desired={"c": 3})))
    twin = registry.get_twin(device_id)
    equal((twin.tags, twin.properties.desired["c"]), ({"a": 1, "b": 2}, 3))


@suite.case("a twin's etag may be asked for", "importMode updateTwinIfMatchETag compares twinETag.")
def update_twin_etag(fresh):
    device_id = fresh()
    create(device_id)
    etag = registry.get_twin(device_id).etag
    run(item(device_id, "updateTwinIfMatchETag", twin_etag=etag, tags={"a": 1}))
    stale = item(device_id, "updateTwinIfMatchETag", twin_etag=etag, tags={"a": 2})
    equal(failures(stale), [(device_id, "PreconditionFailed")])
    equal(registry.get_twin(device_id).tags, {"a": 1})


@suite.case("a device's etag may be asked for", "importMode updateIfMatchETag and deleteIfMatchETag compare eTag.")
def device_etag(fresh):
    device_id = fresh()
    first = create(device_id)
    run(item(device_id, "updateIfMatchETag", e_tag=first.etag, status="disabled"))
    stale = item(device_id, "deleteIfMatchETag", e_tag=first.etag)
    equal(failures(stale), [(device_id, "PreconditionFailed")])
    run(item(device_id, "deleteIfMatchETag", e_tag=registry.get_device(device_id).etag))
    refused(404, registry.get_device, device_id)


@suite.case("modes are mixed", "One request may create, change and delete different devices.")
def mixed(fresh):
    old, young = fresh(), fresh()
    create(old)
    result = run(item(young, "create", status="enabled"), item(old, "delete"))
    equal((result.is_successful, result.errors), (True, []))
    refused(404, registry.get_device, old)
    equal(registry.get_device(young).status, "enabled")


@suite.case("a mode's case does not matter", "importMode is read whatever its case.")
def mode_case(fresh):
    device_id = fresh()
    run(item(device_id, "CREATE", status="enabled"))
    run(item(device_id, "Delete"))
    refused(404, registry.get_device, device_id)


@suite.case("a hundred and one are too many", "POST /devices takes at most 100 devices.")
def too_many(fresh):
    items = [item(fresh(), "create", status="enabled") for _ in range(101)]
    body = refused(413, registry.protocol.bulk_registry.update_registry, items)
    assert "ErrorCode:TooManyDevices;" in body, body
    refused(404, registry.get_device, items[0].id)


@suite.case("an unknown mode is an error", "importMode is one of seven words.")
def unknown_mode(fresh):
    device_id = fresh()
    equal(failures(item(device_id, "improve")), [(device_id, "ArgumentInvalid")])


suite.run()
