"""Twins as a device sees and changes them, by azure-iot-device over MQTT."""

from azure.iot.device.exceptions import ClientError
from azure.iot.hub.models import ExportImportDevice, PropertyContainer, Twin, TwinProperties

from suite import Suite

from support import connect, create_device, equal, raw_rows, registry, until

suite = Suite()


def device(fresh, **options):
    device_id = fresh()
    connection_string = create_device(device_id)
    return device_id, connection_string, connect(connection_string, **options)


def desire(device_id, properties):
    twin = registry.update_twin(device_id, Twin(properties=TwinProperties(desired=properties)))
    return twin.properties.desired["$version"]


def notices(client):
    """What comes from now on. Setting the handler makes the SDK subscribe and look at the twin."""
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    return patches


@suite.case("a device gets its sections", "A twin GET answers desired and reported with $version each, and no more.")
def sections(fresh):
    device_id, _, client = device(fresh)
    body = Twin(tags={"secret": 1}, properties=TwinProperties(desired={"a": {"b": 1}}))
    registry.update_twin(device_id, body)
    equal(client.get_twin(), {"desired": {"a": {"b": 1}, "$version": 2}, "reported": {"$version": 1}})
    client.shutdown()


@suite.case("reports merge", "A reported patch merges, null removes, and each adds one to $version.")
def reports(fresh):
    device_id, _, client = device(fresh)
    client.patch_twin_reported_properties({"fw": {"version": "1", "slot": "a"}, "passing": True})
    client.patch_twin_reported_properties({"fw": {"version": "2"}, "passing": None})
    equal(client.get_twin()["reported"], {"fw": {"version": "2", "slot": "a"}, "$version": 3})
    equal(registry.get_twin(device_id).properties.reported["fw"]["version"], "2")
    client.shutdown()


@suite.case("a wrong report is refused", "A report that breaks a limit ends with the status 400, and changes nothing.")
def wrong_report(fresh):
    _, _, client = device(fresh)
    for wrong in ({"a.b": 1}, {"text": "x" * 4097}, {"n": 2**60}):
        try:
            client.patch_twin_reported_properties(wrong)
        except ClientError as error:
            # The SDK has no class of its own for it.
            assert "400" in str(error.__cause__), error.__cause__
        else:
            raise AssertionError(f"{str(wrong)[:40]} was taken")
    equal(client.get_twin()["reported"], {"$version": 1})
    client.shutdown()


@suite.case("notices come in order", "A device gets every change once, in order, with $version in the body.")
def order(fresh):
    device_id, _, client = device(fresh)
    patches = notices(client)
    versions = [desire(device_id, {"step": step}) for step in range(1, 11)]
    until("the last arrives", lambda: patches and patches[-1].get("step") == 10)
    seen = [(patch["step"], patch["$version"]) for patch in patches if "step" in patch]
    equal(seen, list(zip(range(1, 11), versions)))
    client.shutdown()


@suite.case("a notice holds nulls", "A removal is a null in the patch.")
def nulls(fresh):
    device_id, _, client = device(fresh)
    desire(device_id, {"a": {"b": 1, "c": 1}})
    patches = notices(client)
    version = desire(device_id, {"a": {"b": None}})
    wanted = {"a": {"b": None}, "$version": version}
    until("it arrives", lambda: wanted in patches)
    equal(client.get_twin()["desired"], {"a": {"c": 1}, "$version": version})
    client.shutdown()


@suite.case("a replacement is a notice", "A PUT reaches the device as a patch: the new section, and null for what went.")
def replaced(fresh):
    device_id, _, client = device(fresh)
    desire(device_id, {"old": 1, "kept": {"x": 1, "y": 1}})
    patches = notices(client)
    twin = registry.replace_twin(device_id, Twin(properties=TwinProperties(desired={"kept": {"x": 2}, "new": 3})))
    version = twin.properties.desired["$version"]
    wanted = {"old": None, "kept": {"x": 2, "y": None}, "new": 3, "$version": version}
    until("it arrives", lambda: wanted in patches)
    equal(client.get_twin()["desired"], {"kept": {"x": 2}, "new": 3, "$version": version})
    client.shutdown()


@suite.case("a job's change is a notice", "A change by PATCH and one by bulk reach the device alike.")
def bulk(fresh):
    device_id, _, client = device(fresh)
    patches = notices(client)
    item = ExportImportDevice(id=device_id, import_mode="updateTwin", properties=PropertyContainer(desired={"b": 1}))
    registry.bulk_create_or_update_devices([item])
    until("it arrives", lambda: {"b": 1, "$version": 2} in patches)
    client.shutdown()


@suite.case("every kind of value arrives", "Objects, strings, numbers, booleans and arrays come as they are.")
def kinds(fresh):
    device_id, _, client = device(fresh)
    everything = {"s": "grün \U0001f6aa", "i": -7, "f": 0.25, "b": False, "l": [1, "a", {"c": [True]}], "o": {}}
    patches = notices(client)
    version = desire(device_id, everything)
    until("it arrives", lambda: {**everything, "$version": version} in patches)
    client.patch_twin_reported_properties(everything)
    equal(client.get_twin()["reported"], {**everything, "$version": 2})
    client.shutdown()


@suite.case("a change from meanwhile is found", "After a reconnect the SDK reads the twin and makes a patch of it.")
def meanwhile(fresh):
    device_id, _, client = device(fresh)
    patches = notices(client)
    desire(device_id, {"step": 1})
    until("the first arrives", lambda: any(patch.get("step") == 1 for patch in patches))
    client.disconnect()
    version = desire(device_id, {"step": 2})
    client.connect()
    until("the second arrives", lambda: any(patch.get("step") == 2 for patch in patches))
    seen = [patch for patch in patches if patch.get("step") == 2]
    equal([(patch["step"], patch["$version"]) for patch in seen], [(2, version)])
    client.shutdown()


@suite.case("a model is announced", "modelId of a twin is the model-id of the last CONNECT that had one.")
def model(fresh):
    model_id = "dtmi:com:example:Python;1"
    device_id, connection_string, client = device(fresh, product_info=model_id)
    client.shutdown()
    find = f"SELECT deviceId FROM devices WHERE modelId = '{model_id}'"
    until("the model is found", lambda: raw_rows(find) == [{"deviceId": device_id}])
    connect(connection_string).shutdown()
    equal(raw_rows(f"SELECT modelId FROM devices WHERE deviceId = '{device_id}'"), [{"modelId": model_id}])


suite.run()
