"""Scheduled jobs by azure-iot-hub. Its `query_scheduled_jobs` asks for another shape than Azure's and is left out."""

from datetime import datetime, timedelta, timezone
from uuid import uuid4

from azure.iot.hub.models import CloudToDeviceMethod, JobRequest, Twin, TwinProperties

from suite import Suite

from support import (
    all_succeeded,
    among,
    connect,
    create_device,
    equal,
    finished,
    job_rows,
    jobs,
    on_methods,
    refused,
    registry,
    statistics,
)

suite = Suite()


def devices(fresh, count):
    ids = [fresh() for _ in range(count)]
    for device_id in ids:
        create_device(device_id)
    return ids


def create(**members):
    job_id = str(uuid4())
    members.setdefault("max_execution_time_in_seconds", 60)
    return job_id, jobs.create_scheduled_job(job_id, JobRequest(job_id=job_id, **members))


def twin_job(ids, update, **more):
    update.etag = "*"
    return create(type="scheduleUpdateTwin", update_twin=update, query_condition=among(ids), **more)


def method_job(ids, **more):
    method = CloudToDeviceMethod(method_name="work", payload={"n": 1}, response_timeout_in_seconds=10)
    return create(type="scheduleDeviceMethod", cloud_to_device_method=method, query_condition=among(ids), **more)


@suite.case("the answer to a new job", "PUT answers jobId, type and status queued.")
def created(fresh):
    job_id, job = twin_job(devices(fresh, 1), Twin(tags={"a": 1}))
    equal((job.job_id, job.type, job.status), (job_id, "scheduleUpdateTwin", "queued"))
    equal((job.created_time, job.query_condition), (None, None))
    finished(job_id)


@suite.case("a twin job", "scheduleUpdateTwin merges tags and desired properties, for devices that are away, too.")
def twins(fresh):
    ids = devices(fresh, 5)
    job_id, _ = twin_job(ids, Twin(tags={"t": 1}, properties=TwinProperties(desired={"d": 2})))
    job = finished(job_id)
    equal((job.status, statistics(job)), ("completed", all_succeeded(5)))
    for device_id in ids:
        twin = registry.get_twin(device_id)
        equal((twin.tags, twin.properties.desired["d"]), ({"t": 1}, 2))
    equal([row["outcome"] for row in job_rows(job_id)], [{"deviceMethodResponse": None}] * 5)


@suite.case("a method job", "scheduleDeviceMethod keeps each device's status and payload in its row.")
def methods(fresh):
    device_id = fresh()
    client = connect(create_device(device_id))
    on_methods(client, {"work": lambda payload: (202, {"got": payload})})
    job_id, _ = method_job([device_id])
    equal(statistics(finished(job_id)), all_succeeded(1))
    (row,) = job_rows(job_id)
    equal(row["outcome"]["deviceMethodResponse"], {"status": 202, "payload": {"got": {"n": 1}}})
    client.shutdown()


@suite.case("a device that is away", "It has failed with DeviceNotOnline; the job is completed.")
def away(fresh):
    job_id, _ = method_job(devices(fresh, 1), max_execution_time_in_seconds=2)
    job = finished(job_id)
    equal((job.status, statistics(job)["failed"]), ("completed", 1))
    (row,) = job_rows(job_id)
    equal((row["status"], row["error"]["code"]), ("failed", "DeviceNotOnline"))


@suite.case("a job of the future", "It waits as queued or scheduled, can be cancelled, and then never runs.")
def future(fresh):
    ids = devices(fresh, 1)
    job_id, _ = twin_job(ids, Twin(tags={"a": 1}), start_time=datetime.now(timezone.utc) + timedelta(hours=1))
    assert jobs.get_scheduled_job(job_id).status in ("queued", "scheduled")
    jobs.cancel_scheduled_job(job_id)
    equal(finished(job_id).status, "cancelled")
    equal(registry.get_twin(ids[0]).version, 1)


@suite.case("without a start it begins now", "startTime may be left out; maxExecutionTimeInSeconds, too.")
def without_start(fresh):
    ids = devices(fresh, 1)
    job_id, _ = twin_job(ids, Twin(tags={"a": 1}), start_time=None, max_execution_time_in_seconds=None)
    job = finished(job_id)
    equal((job.status, job.max_execution_time_in_seconds), ("completed", 3600))


@suite.case("types have exact names", "Names of the documentation's prose, such as scheduleTwinUpdate, are 400.")
def types(fresh):
    for name in ("scheduleTwinUpdate", "scheduleDirectMethod", "scheduleDirectRequest"):
        body = refused(400, lambda: create(type=name, update_twin=Twin(etag="*"), query_condition="*"))
        assert "ErrorCode:GenericBadRequest;BadRequest" in body, body


@suite.case("a condition is needed", "A job without queryCondition is 400.")
def condition(fresh):
    body = refused(400, lambda: create(type="scheduleUpdateTwin", update_twin=Twin(etag="*", tags={"a": 1})))
    assert "ErrorCode:Argument" in body, body


@suite.case("an unknown job", "GET and cancel of an unknown job are 404 JobNotFound.")
def unknown(fresh):
    for call in (jobs.get_scheduled_job, jobs.cancel_scheduled_job):
        assert "ErrorCode:JobNotFound" in refused(404, call, str(uuid4()))


suite.run()
