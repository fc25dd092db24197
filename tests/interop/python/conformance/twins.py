"""Twins as a back end changes them by azure-iot-hub: what only it offers, PUT and both spellings of etags, and what its
models make of a twin."""

from azure.iot.hub.models import Twin, TwinProperties

from suite import Suite

from support import create_device, equal, refused, registry

suite = Suite()


def created(fresh):
    device_id = fresh()
    create_device(device_id)
    return device_id


def desired(properties):
    return Twin(properties=TwinProperties(desired=properties))


def values(section):
    return {name: value for name, value in section.items() if not name.startswith("$")}


@suite.case("a twin is read", "GET /twins/{id} has the members that the SDK's model names.")
def read(fresh):
    device_id = created(fresh)
    twin = registry.get_twin(device_id)
    equal((twin.device_id, twin.etag, twin.version), (device_id, "AAAAAAAAAAE=", 1))
    equal((twin.status, twin.connection_state, twin.authentication_type), ("enabled", "Disconnected", "sas"))
    equal(twin.device_etag, registry.get_device(device_id).etag)
    equal((twin.cloud_to_device_message_count, twin.capabilities.iot_edge), (0, False))
    equal(twin.properties.reported["$version"], 1)


@suite.case("a change merges", "PATCH merges tags and desired properties.")
def merge(fresh):
    device_id = created(fresh)
    registry.update_twin(device_id, Twin(tags={"a": {"x": 1}}, properties=TwinProperties(desired={"d": 1})))
    twin = registry.update_twin(device_id, Twin(tags={"a": {"y": 2}}))
    equal((twin.tags, values(twin.properties.desired)), ({"a": {"x": 1, "y": 2}}, {"d": 1}))


@suite.case("null removes", "null for a key removes it, at every level.")
def null(fresh):
    device_id = created(fresh)
    registry.update_twin(device_id, desired({"a": 1, "b": {"c": 1, "d": 1}}))
    twin = registry.update_twin(device_id, desired({"a": None, "b": {"c": None}}))
    equal(values(twin.properties.desired), {"b": {"d": 1}})


@suite.case("a replacement replaces", "PUT holds the new tags and desired properties and nothing of the old.")
def replace(fresh):
    device_id = created(fresh)
    registry.update_twin(device_id, Twin(tags={"a": 1}, properties=TwinProperties(desired={"b": 1, "c": {"d": 1}})))
    twin = registry.replace_twin(device_id, Twin(tags={"e": 2}, properties=TwinProperties(desired={"c": {"f": 2}})))
    equal((twin.tags, values(twin.properties.desired)), ({"e": 2}, {"c": {"f": 2}}))
    equal((twin.properties.desired["$version"], twin.version), (3, 3))
    metadata = twin.properties.desired["$metadata"]
    equal(sorted(name for name in metadata if not name.startswith("$")), ["c"])
    equal(metadata["c"]["f"]["$lastUpdatedVersion"], 3)


@suite.case("a replacement leaves a part that it does not name", "PUT without tags leaves tags alone (choice).")
def replace_part(fresh):
    device_id = created(fresh)
    registry.update_twin(device_id, Twin(tags={"a": 1}))
    twin = registry.replace_twin(device_id, desired({"b": 1}))
    equal((twin.tags, values(twin.properties.desired)), ({"a": 1}, {"b": 1}))


@suite.case("a replacement leaves reports alone", "PUT does not touch reported properties.")
def replace_reported(fresh):
    device_id = created(fresh)
    body = Twin(tags={}, properties=TwinProperties(desired={}, reported={"x": 1}))
    twin = registry.replace_twin(device_id, body)
    equal((values(twin.properties.reported), twin.properties.reported["$version"]), ({}, 1))


@suite.case("a replacement asks for the etag", "PUT with If-Match of a former etag is 412.")
def replace_etag(fresh):
    device_id = created(fresh)
    etag = registry.get_twin(device_id).etag
    registry.replace_twin(device_id, Twin(tags={"a": 1}), etag)
    assert "PreconditionFailed" in refused(412, registry.replace_twin, device_id, Twin(tags={"a": 2}), etag)
    equal(registry.get_twin(device_id).tags, {"a": 1})


@suite.case("etags with and without quotation marks", "If-Match may come as * or \"*\", AAA= or \"AAA=\".")
def etag_spellings(fresh):
    device_id = created(fresh)
    for number, spell in enumerate(("{}", '"{}"', "*", '"*"')):
        etag = spell.format(registry.get_twin(device_id).etag)
        equal(registry.update_twin(device_id, Twin(tags={"n": number}), etag).tags, {"n": number})


@suite.case("a twin sent back is no change of its own", "$version and $metadata in a body are ignored.")
def round_trip(fresh):
    device_id = created(fresh)
    registry.update_twin(device_id, desired({"a": {"b": 1}}))
    twin = registry.get_twin(device_id)
    twin.properties.desired["a"]["b"] = 2
    after = registry.replace_twin(device_id, twin)
    equal((values(after.properties.desired), after.properties.desired["$version"]), ({"a": {"b": 2}}, 3))


@suite.case("a limit is told", "What breaks a limit is 400 ArgumentInvalid, by PATCH and by PUT.")
def limits(fresh):
    device_id = created(fresh)
    for wrong in ({"a.b": 1}, {"a": "x" * 4097}, {"n": 2**60}, {f"k{n}": "x" * 4000 for n in range(9)}):
        for call in (registry.update_twin, registry.replace_twin):
            body = refused(400, call, device_id, desired(wrong))
            assert "ErrorCode:ArgumentInvalid" in body, body
    equal(registry.get_twin(device_id).version, 1)


@suite.case("an unknown twin is not found", "GET, PATCH and PUT of a twin without a device are 404 DeviceNotFound.")
def unknown(fresh):
    nobody = fresh("nobody")
    for call, *arguments in (
        (registry.get_twin, nobody),
        (registry.update_twin, nobody, Twin(tags={})),
        (registry.replace_twin, nobody, Twin(tags={})),
    ):
        assert "ErrorCode:DeviceNotFound" in refused(404, call, *arguments)


suite.run()
