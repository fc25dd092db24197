"""What the scripts share: the hub's addresses, the SDKs' clients, waiting, and the end of the process."""

import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from azure.iot.device import IoTHubDeviceClient, MethodResponse
from azure.iot.hub import IoTHubJobManager, IoTHubRegistryManager
from azure.iot.hub.models import QuerySpecification
from msrest.exceptions import HttpOperationError

# Longer than anything here takes on a slow machine, shorter than the test's patience.
PATIENCE = 80
FINAL = ("completed", "failed", "cancelled")

DATA = Path(os.environ["LATCH_DATA"])
CA = (DATA / "ca.pem").read_text()
SERVICE_STRING = (DATA / "service.connstr").read_text().strip()

registry = IoTHubRegistryManager.from_connection_string(SERVICE_STRING)
jobs = IoTHubJobManager.from_connection_string(SERVICE_STRING)


def main(run):
    """Runs the script; its failure is the process's. The SDK's threads do not keep the process."""
    late = threading.Timer(PATIENCE, leave, (2, "the script has not ended in time"))
    late.daemon = True
    late.start()
    try:
        run()
    except BaseException:
        leave(1, traceback.format_exc())
    leave(0, "")


def leave(status, message):
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def until(what, ask, patience=20):
    """Asks until the answer is true, and gives it."""
    deadline = time.monotonic() + patience
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not in time"
        time.sleep(0.05)


def equal(actual, expected):
    """`assert` alone does not show the values."""
    assert actual == expected, f"{actual!r} is not {expected!r}"


def refused(status, call, *arguments):
    """The call must end with that HTTP status; gives the body."""
    try:
        answer = call(*arguments)
    except HttpOperationError as error:
        equal(error.response.status_code, status)
        return error.response.text
    raise AssertionError(f"expected status {status}, got {answer!r}")


def create_device(device_id):
    """Creates a device as an application does; gives its connection string."""
    device = registry.create_device_with_sas(device_id, None, None, "enabled")
    equal(device.device_id, device_id)
    equal(device.status, "enabled")
    key = device.authentication.symmetric_key.primary_key
    return f"HostName={host_name()};DeviceId={device_id};SharedAccessKey={key}"


def host_name():
    pairs = dict(pair.split("=", 1) for pair in SERVICE_STRING.split(";"))
    return pairs["HostName"]


def connect(connection_string, **options):
    """A connected client of that device."""
    client = IoTHubDeviceClient.create_from_connection_string(
        connection_string, server_verification_cert=CA, **options
    )
    client.connect()
    return client


def on_methods(client, answers):
    """Answers direct methods from now on: `answers` maps a name to a function from a payload to (status, payload).

    A name that is not there gets no answer at all.
    """

    def answer(request):
        if request.name not in answers:
            return
        status, payload = answers[request.name](request.payload)
        client.send_method_response(MethodResponse.create_from_method_request(request, status, payload))

    client.on_method_request_received = answer


def latch(*args):
    """Runs a command of `latch` on the hub's data folder; gives its stdout."""
    done = subprocess.run(
        [os.environ["LATCH"], *args, "--data", str(DATA)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"latch {args!r}: {done.stderr}"
    return done.stdout


def finished(job_id):
    """The job once it has ended, however."""

    def ask():
        job = jobs.get_scheduled_job(job_id)
        return job.status in FINAL and job

    return until(f"job {job_id} ends", ask)


def query(text, page_size=None):
    """The twins of a query and the sizes of its pages."""
    rows, pages, continuation = [], [], None
    while True:
        size = None if page_size is None else str(page_size)
        page = registry.query_iot_hub(QuerySpecification(query=text), continuation, size)
        rows += page.items
        pages.append(len(page.items))
        continuation = page.continuation_token
        if continuation is None:
            return rows, pages


def raw_rows(text):
    """The rows of a query that does not ask for twins; the SDK makes twins of whatever it gets."""
    answer = registry.protocol.query.get_twins(QuerySpecification(query=text), raw=True)
    return answer.response.json()


def job_rows(job_id):
    """Every device's row of a job, by device id."""
    rows = raw_rows(f"SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{job_id}'")
    return sorted(rows, key=lambda row: row["deviceId"])


def among(device_ids):
    """deviceId IN ['a', 'b']"""
    return f"deviceId IN {list(device_ids)!r}"


def statistics(job):
    counts = job.device_job_statistics
    return {
        "devices": counts.device_count,
        "succeeded": counts.succeeded_count,
        "failed": counts.failed_count,
        "running": counts.running_count,
        "pending": counts.pending_count,
    }


def all_succeeded(count):
    return {"devices": count, "succeeded": count, "failed": 0, "running": 0, "pending": 0}
