"""A device and a back end, both by the SDKs: the tour of `tutorial.js`, as far as the REST parts go."""

import json
import threading
from datetime import datetime, timedelta, timezone
from uuid import uuid4

from azure.iot.device import Message
from azure.iot.hub.models import CloudToDeviceMethod, JobRequest, QuerySpecification, Twin, TwinProperties

from support import (
    all_succeeded,
    among,
    connect,
    create_device,
    equal,
    finished,
    job_rows,
    jobs,
    main,
    on_methods,
    query,
    raw_rows,
    refused,
    registry,
    statistics,
    until,
)

DEVICE_ID = "myDeviceId"


def run():
    client = connect(create_device(DEVICE_ID))
    calls, patches = [], []

    def lock_door(payload):
        calls.append(payload)
        return 200, {"locked": True}

    on_methods(client, {"lockDoor": lock_door})
    client.on_twin_desired_properties_patch_received = patches.append

    # Takes five seconds, so it goes on beside the rest.
    timed_out = []
    silent = threading.Thread(target=silent_method, args=[timed_out])
    silent.start()
    twins(client, patches)
    direct_method(calls)
    method_job(calls)
    twin_job(patches)
    cancelled_job()
    telemetry(client)
    queries()
    errors()
    silent.join()
    assert timed_out, "the method that nobody answers did not end as it should"

    client.shutdown()
    offline()
    registry.delete_device(DEVICE_ID)
    refused(404, registry.get_device, DEVICE_ID)


def silent_method(timed_out):
    method = CloudToDeviceMethod(method_name="nobodyAnswers", response_timeout_in_seconds=5)
    body = refused(504, registry.invoke_device_method, DEVICE_ID, method)
    assert "504101" in body, body
    timed_out.append(body)


def twins(client, patches):
    desired = TwinProperties(desired={"building": "12", "obsolete": 1})
    changed = registry.update_twin(DEVICE_ID, Twin(tags={"site": "north"}, properties=desired))
    equal(changed.tags, {"site": "north"})
    until("the device sees the change", lambda: [p for p in patches if p.get("building") == "12"])
    desired = TwinProperties(desired={"obsolete": None})
    registry.update_twin(DEVICE_ID, Twin(properties=desired))
    until("the device sees the removal", lambda: [p for p in patches if "obsolete" in p and p["obsolete"] is None])

    client.patch_twin_reported_properties({"firmware": {"version": "1.2"}, "passing": True})
    client.patch_twin_reported_properties({"passing": None})
    seen_by_device = client.get_twin()
    assert "tags" not in seen_by_device
    equal(seen_by_device["desired"]["building"], "12")
    assert "obsolete" not in seen_by_device["desired"], seen_by_device
    equal(seen_by_device["reported"], {"firmware": {"version": "1.2"}, "$version": 3})
    seen_by_service = registry.get_twin(DEVICE_ID)
    equal(seen_by_service.properties.reported["firmware"], {"version": "1.2"})
    equal(seen_by_service.connection_state, "Connected")


def direct_method(calls):
    payload = {"by": "ann", "rooms": [1, 2], "note": "grün"}
    method = CloudToDeviceMethod(method_name="lockDoor", payload=payload, response_timeout_in_seconds=15)
    answer = registry.invoke_device_method(DEVICE_ID, method)
    equal((answer.status, answer.payload), (200, {"locked": True}))
    equal(calls, [payload])


def method_job(calls):
    job_id = str(uuid4())
    request = JobRequest(
        job_id=job_id,
        type="scheduleDeviceMethod",
        cloud_to_device_method=CloudToDeviceMethod(method_name="lockDoor", response_timeout_in_seconds=15),
        query_condition=among([DEVICE_ID]),
        start_time=datetime.now(timezone.utc),
        max_execution_time_in_seconds=60,
    )
    created = jobs.create_scheduled_job(job_id, request)
    equal((created.job_id, created.type, created.status), (job_id, "scheduleDeviceMethod", "queued"))
    job = finished(job_id)
    equal(job.status, "completed")
    equal(statistics(job), all_succeeded(1))
    assert job.created_time <= job.end_time
    equal(calls[-1], None)
    (row,) = job_rows(job_id)
    equal((row["deviceId"], row["status"]), (DEVICE_ID, "completed"))
    equal(row["outcome"]["deviceMethodResponse"], {"status": 200, "payload": {"locked": True}})


def twin_job(patches):
    job_id = str(uuid4())
    request = JobRequest(
        job_id=job_id,
        type="scheduleUpdateTwin",
        update_twin=Twin(etag="*", properties=TwinProperties(desired={"building": "43", "floor": 3})),
        query_condition="tags.site = 'north'",
        max_execution_time_in_seconds=60,
    )
    jobs.create_scheduled_job(job_id, request)
    job = finished(job_id)
    equal((job.status, job.type), ("completed", "scheduleUpdateTwin"))
    equal(statistics(job), all_succeeded(1))
    version = registry.get_twin(DEVICE_ID).properties.desired["$version"]
    wanted = {"building": "43", "floor": 3, "$version": version}
    until("the device sees the job's change", lambda: wanted in patches)


def cancelled_job():
    job_id = str(uuid4())
    request = JobRequest(
        job_id=job_id,
        type="scheduleDeviceMethod",
        cloud_to_device_method=CloudToDeviceMethod(method_name="lockDoor", response_timeout_in_seconds=15),
        query_condition="*",
        start_time=datetime.now(timezone.utc) + timedelta(hours=1),
        max_execution_time_in_seconds=60,
    )
    jobs.create_scheduled_job(job_id, request)
    refused(409, jobs.create_scheduled_job, job_id, request)
    jobs.cancel_scheduled_job(job_id)
    equal(finished(job_id).status, "cancelled")


def telemetry(client):
    message = Message(json.dumps({"temperature": 21.5}))
    message.message_id = "first one"
    message.content_type = "application/json"
    message.content_encoding = "utf-8"
    message.custom_properties["a key"] = "a/value"
    client.send_message(message)
    client.send_message("plain text")


def queries():
    fleet = [f"paged-{number}" for number in range(1, 6)]
    for device_id in fleet:
        create_device(device_id)
        registry.update_twin(device_id, Twin(tags={"fleet": "paged"}))
    rows, pages = query("SELECT * FROM devices WHERE tags.fleet = 'paged'", 2)
    equal(pages, [2, 2, 1])
    equal(sorted(row.device_id for row in rows), fleet)
    rows, pages = query(f"SELECT * FROM devices WHERE deviceId = '{DEVICE_ID}'")
    equal((pages, rows[0].tags), ([1], {"site": "north"}))
    equal(raw_rows("SELECT COUNT() AS total FROM devices WHERE tags.fleet = 'paged'"), [{"total": 5}])
    equal(registry.get_device_registry_statistics().total_device_count, 6)
    equal(len(registry.get_devices(3)), 3)


def errors():
    refused(409, create_device, DEVICE_ID)
    refused(404, registry.get_twin, "nobody")
    refused(412, registry.update_twin, DEVICE_ID, Twin(tags={"a": 1}), "AAAAAAAAAAA=")
    refused(400, registry.query_iot_hub, QuerySpecification(query="SELECT FROM devices WHERE"))
    refused(404, jobs.get_scheduled_job, "no-such-job")
    method = CloudToDeviceMethod(method_name="lockDoor", response_timeout_in_seconds=3)
    refused(400, registry.invoke_device_method, DEVICE_ID, method)


def offline():
    method = CloudToDeviceMethod(method_name="lockDoor", response_timeout_in_seconds=15)
    body = refused(404, registry.invoke_device_method, DEVICE_ID, method)
    assert "404103" in body, body


main(run)
