"""Modules: identities, twins and methods by azure-iot-hub, connections by azure-iot-device's IoTHubModuleClient."""

import json

from azure.iot.device import IoTHubModuleClient, Message, MethodResponse
from azure.iot.hub.models import CloudToDeviceMethod, ExportImportDevice, JobRequest, Twin, TwinProperties

from suite import Suite

from support import CA, create_device, equal, finished, host_name, job_rows, jobs, latch, raw_rows, refused, registry, until

suite = Suite()


def new_module(fresh, module_id="lock"):
    device_id = fresh()
    create_device(device_id)
    return device_id, registry.create_module_with_sas(device_id, module_id, "", None, None)


def connect(module):
    key = module.authentication.symmetric_key.primary_key
    string = f"HostName={host_name()};DeviceId={module.device_id};ModuleId={module.module_id};SharedAccessKey={key}"
    client = IoTHubModuleClient.create_from_connection_string(string, server_verification_cert=CA)
    client.connect()
    return client


def method(name, payload=None):
    return CloudToDeviceMethod(method_name=name, payload=payload, response_timeout_in_seconds=15)


@suite.case("a module is created", "PUT /devices/{id}/modules/{id} makes keys and answers 200 with the module's identity.")
def creation(fresh):
    device_id, module = new_module(fresh)
    equal((module.device_id, module.module_id, module.connection_state), (device_id, "lock", "Disconnected"))
    assert module.authentication.symmetric_key.primary_key
    equal(registry.get_module(device_id, "lock").etag, module.etag)
    equal([each.module_id for each in registry.get_modules(device_id)], ["lock"])


@suite.case("a module is created once", "A second module of one name is 409 ModuleAlreadyExistsOnDevice.")
def once(fresh):
    device_id, _ = new_module(fresh)
    text = refused(409, registry.create_module_with_sas, device_id, "lock", "", None, None)
    assert "ErrorCode:ModuleAlreadyExistsOnDevice" in text, text
    text = refused(404, registry.create_module_with_sas, fresh("nobody"), "lock", "", None, None)
    assert "ErrorCode:DeviceNotFound" in text, text


@suite.case("an update asks for the etag", "PUT of a module with If-Match of a former etag is 412, with * it is 200.")
def update(fresh):
    device_id, module = new_module(fresh)
    keys = module.authentication.symmetric_key

    def change(etag, managed_by):
        return registry.update_module_with_sas(
            device_id, "lock", managed_by, etag, keys.primary_key, keys.secondary_key
        )

    equal(change(module.etag, "ops").managed_by, "ops")
    assert "PreconditionFailed" in refused(412, change, module.etag, "others")
    equal(change(None, "others").authentication.symmetric_key.primary_key, keys.primary_key)


@suite.case("a module by certificate", "A module takes thumbprints and authorities as devices do.")
def certificates(fresh):
    device_id, _ = new_module(fresh)
    thumbprint = "ab" * 32
    module = registry.create_module_with_x509(device_id, "own", "", thumbprint, None)
    equal((module.authentication.type, module.authentication.x509_thumbprint.primary_thumbprint), ("selfSigned", thumbprint))
    module = registry.create_module_with_certificate_authority(device_id, "signed", "")
    equal(module.authentication.type, "certificateAuthority")
    equal(registry.get_module_twin(device_id, "own").authentication_type, "selfSigned")


@suite.case("a deletion is exactly 204", "DELETE of a module is 204; a second one is 404 ModuleNotFound.")
def deletion(fresh):
    device_id, _ = new_module(fresh)
    equal(registry.delete_module(device_id, "lock"), None)
    assert "ErrorCode:ModuleNotFound" in refused(404, registry.delete_module, device_id, "lock")
    equal(registry.get_modules(device_id), [])


@suite.case("a module has a twin of its own", "Desired changes reach the module, its reports its own twin.")
def twins(fresh):
    device_id, module = new_module(fresh)
    client = connect(module)
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    client.get_twin()
    change = Twin(tags={"site": "A"}, properties=TwinProperties(desired={"bolts": 3}))
    twin = registry.update_module_twin(device_id, "lock", change)
    equal((twin.device_id, twin.module_id, twin.tags), (device_id, "lock", {"site": "A"}))
    until("the module hears of it", lambda: [each for each in patches if each.get("bolts") == 3])
    client.patch_twin_reported_properties({"bolts": 3})
    equal(registry.get_module_twin(device_id, "lock").properties.reported["bolts"], 3)
    equal(registry.get_twin(device_id).properties.reported.get("bolts"), None)
    replaced = registry.replace_module_twin(device_id, "lock", Twin(tags={}, properties=TwinProperties(desired={})))
    equal((replaced.tags or {}, replaced.properties.desired.get("bolts")), ({}, None))
    client.shutdown()


@suite.case("a method goes to the module", "POST /twins/{id}/modules/{id}/methods is answered by the module.")
def methods(fresh):
    device_id, module = new_module(fresh)
    client = connect(module)

    def answer(request):
        client.send_method_response(MethodResponse.create_from_method_request(request, 201, request.payload))

    client.on_method_request_received = answer
    answered = registry.invoke_device_module_method(device_id, "lock", method("turn", {"by": 2}))
    equal((answered.status, answered.payload), (201, {"by": 2}))
    client.shutdown()
    text = refused(404, registry.invoke_device_module_method, device_id, "nobody", method("turn"))
    equal(json.loads(json.loads(text)["Message"])["errorCode"], 404010)


@suite.case("messages of a module", "Messages and outputs of a module are stamped with its id.")
def messages(fresh):
    device_id, module = new_module(fresh)
    client = connect(module)
    client.send_message("plain")
    client.send_message_to_output(Message("out"), "alerts")
    client.shutdown()

    def shown():
        lines = latch("events", "--device", f"{device_id}/lock", "--kind", "telemetry", "--json").splitlines()
        return len(lines) >= 2 and [json.loads(line) for line in lines]

    plain, output = until("the telemetry is shown", shown)
    equal((plain["body"], plain["moduleId"], plain["systemProperties"]["iothub-connection-module-id"]), ("plain", "lock", "lock"))
    equal((output["body"], output["systemProperties"]["iothub-outputname"]), ("out", "alerts"))


@suite.case("many in one request", "Items of POST /devices with moduleId are of modules.")
def bulk(fresh):
    device_id, _ = new_module(fresh)
    items = [
        ExportImportDevice(id=device_id, module_id="sensor", import_mode="create", tags={"a": 1}),
        ExportImportDevice(id=device_id, module_id="lock", import_mode="delete"),
    ]
    assert registry.bulk_create_or_update_devices(items).is_successful
    equal([each.module_id for each in registry.get_modules(device_id)], ["sensor"])
    equal(registry.get_module_twin(device_id, "sensor").tags, {"a": 1})
    rows = raw_rows(f"SELECT moduleId, tags.a AS a FROM devices.modules WHERE deviceId = '{device_id}'")
    equal(rows, [{"moduleId": "sensor", "a": 1}])


@suite.case("a job over modules", "A job whose condition is FROM devices.modules goes to modules; its rows name them.")
def job(fresh):
    device_id, _ = new_module(fresh)
    job_id = fresh("job")
    twin = Twin(etag="*", properties=TwinProperties(desired={"x": 1}))
    condition = f"FROM devices.modules WHERE deviceId = '{device_id}'"
    request = JobRequest(
        job_id=job_id,
        type="scheduleUpdateTwin",
        update_twin=twin,
        query_condition=condition,
        max_execution_time_in_seconds=60,
    )
    jobs.create_scheduled_job(job_id, request)
    equal(finished(job_id).status, "completed")
    equal([(row["deviceId"], row["moduleId"]) for row in job_rows(job_id)], [(device_id, "lock")])
    equal(registry.get_module_twin(device_id, "lock").properties.desired["x"], 1)


suite.run()
