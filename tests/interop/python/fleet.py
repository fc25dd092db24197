"""Jobs of the SDK over devices whose behaviour is the example plugins."""

from uuid import uuid4

from azure.iot.hub.models import CloudToDeviceMethod, JobRequest, Twin, TwinProperties

from support import all_succeeded, among, equal, finished, job_rows, jobs, main, registry, statistics, until

DOORS = [f"door-000{number}" for number in range(1, 6)]


def run():
    lock_all()
    place()
    method = CloudToDeviceMethod(method_name="unlockDoor", payload={"by": "ann"}, response_timeout_in_seconds=15)
    answer = registry.invoke_device_method(DOORS[0], method)
    equal((answer.status, answer.payload), (200, {"locked": False, "count": 2, "version": "1.0.0"}))


def lock_all():
    job = schedule(
        type="scheduleDeviceMethod",
        cloud_to_device_method=CloudToDeviceMethod(method_name="lockDoor", response_timeout_in_seconds=15),
        query_condition=among(DOORS),
    )
    rows = job_rows(job.job_id)
    equal([row["deviceId"] for row in rows], DOORS)
    payload = {"locked": True, "count": 1, "version": "1.0.0"}
    for row in rows:
        equal(row["status"], "completed")
        equal(row["outcome"]["deviceMethodResponse"], {"status": 200, "payload": payload})
    for device_id in DOORS:
        reported(device_id, "the lock", lambda properties: properties.get("door") == {"locked": True})


def place():
    schedule(
        type="scheduleUpdateTwin",
        update_twin=Twin(etag="*", properties=TwinProperties(desired={"building": "43", "floor": 3})),
        query_condition="*",
    )
    for device_id in DOORS:
        twin = reported(device_id, "the place", lambda properties: "building" in properties and "floor" in properties)
        building, floor = twin.properties.reported["building"], twin.properties.reported["floor"]
        equal((building["value"], building["ac"]), ("43", 200))
        equal((floor["value"], floor["ac"]), (3, 200))
        equal(building["av"], twin.properties.desired["$version"])


def schedule(**request):
    """Runs a job over the five devices to its end, which must be a success on each."""
    job_id = str(uuid4())
    jobs.create_scheduled_job(job_id, JobRequest(job_id=job_id, max_execution_time_in_seconds=60, **request))
    job = finished(job_id)
    equal(job.status, "completed")
    equal(statistics(job), all_succeeded(5))
    return job


def reported(device_id, what, wanted):
    """The twin, once its reported properties are as wanted."""

    def ask():
        twin = registry.get_twin(device_id)
        return wanted(twin.properties.reported) and twin

    return until(f"{device_id} reports {what}", ask)


main(run)
