'use strict';
// Scheduled jobs by azure-iothub's JobClient, over devices of azure-iot-device.

const { randomUUID } = require('node:crypto');
const {
  among,
  assert,
  connect,
  createDevice,
  finished,
  jobRows,
  jobs,
  onMethod,
  query,
  registry,
  statistics,
} = require('../support');
const { refused, suite } = require('./suite');

const HOUR = 3_600_000;

async function devices(fresh, count) {
  const ids = Array.from({ length: count }, () => fresh());
  await registry.addDevices(ids.map((deviceId) => ({ deviceId })));
  return ids;
}

/** A connected device that answers `work` with `answer`. */
async function worker(fresh, answer) {
  const deviceId = fresh();
  const client = await connect(await createDevice(deviceId));
  await onMethod(client, 'work', answer);
  return { deviceId, client };
}

function twinJob(ids, patch, start = new Date(), jobId = randomUUID()) {
  const condition = Array.isArray(ids) ? among(ids) : ids;
  return jobs.scheduleTwinUpdate(jobId, condition, { etag: '*', ...patch }, start, 60).then(() => jobId);
}

function methodJob(ids, method = {}, start = new Date(), seconds = 60) {
  const jobId = randomUUID();
  const call = { methodName: 'work', payload: null, responseTimeoutInSeconds: 15, ...method };
  return jobs.scheduleDeviceMethod(jobId, among(ids), call, start, seconds).then(() => jobId);
}

suite([
  {
    name: 'the answer to a new job',
    fact: 'PUT /jobs/v2/{id} answers jobId, type and status queued, and nothing else.',
    run: async (fresh) => {
      const jobId = randomUUID();
      const [deviceId] = await devices(fresh, 1);
      const patch = { etag: '*', tags: { a: 1 } };
      const { jobStatus, response } = await jobs.scheduleTwinUpdate(jobId, among([deviceId]), patch, new Date(), 60);
      assert.equal(response.statusCode, 200);
      assert.deepEqual(jobStatus, { jobId, type: 'scheduleUpdateTwin', status: 'queued' });
      await finished(jobId);
    },
  },
  {
    name: 'a twin job changes every twin',
    fact: 'scheduleUpdateTwin merges tags and desired properties of the devices that the condition selects.',
    run: async (fresh) => {
      const ids = await devices(fresh, 25);
      await registry.updateTwin(ids[0], { tags: { old: 1 } }, '*');
      const jobId = await twinJob(ids.slice(0, 20), { tags: { old: null, job: 1 }, properties: { desired: { d: 2 } } });
      const job = await finished(jobId);
      assert.deepEqual([job.status, job.type], ['completed', 'scheduleUpdateTwin']);
      assert.deepEqual(job.deviceJobStatistics, statistics(20, 20));
      const { responseBody: first } = await registry.getTwin(ids[0]);
      assert.deepEqual([first.tags, first.properties.desired.d], [{ job: 1 }, 2]);
      const { responseBody: beside } = await registry.getTwin(ids[20]);
      assert.deepEqual([beside.tags ?? {}, beside.version], [{}, 1]);
    },
  },
  {
    name: 'a job has every member',
    fact: 'GET /jobs/v2/{id} shows what was asked, and createdTime, startTime and endTime.',
    run: async (fresh) => {
      const [deviceId] = await devices(fresh, 1);
      const jobId = await twinJob([deviceId], { tags: { a: 1 }, properties: { desired: { b: 2 } } });
      const job = await finished(jobId);
      assert.deepEqual([job.jobId, job.queryCondition, job.maxExecutionTimeInSeconds], [jobId, among([deviceId]), 60]);
      assert.deepEqual([job.updateTwin.tags, job.updateTwin.properties], [{ a: 1 }, { desired: { b: 2 } }]);
      const times = [job.createdTime, job.startTime, job.endTime].map(Date.parse);
      assert.ok(times.every(Number.isFinite) && times[0] <= times[2] && times[1] <= times[2], JSON.stringify(job));
    },
  },
  {
    name: 'rows of a twin job',
    fact: 'Each device has a row in devices.jobs; that of a twin job has the outcome deviceMethodResponse null.',
    run: async (fresh) => {
      const ids = (await devices(fresh, 3)).sort();
      const jobId = await twinJob(ids, { tags: { a: 1 } });
      await finished(jobId);
      const rows = await jobRows(jobId);
      assert.deepEqual(rows.map((row) => row.deviceId), ids);
      for (const row of rows) {
        assert.deepEqual([row.jobType, row.status], ['scheduleUpdateTwin', 'completed']);
        assert.deepEqual(row.outcome, { deviceMethodResponse: null });
        assert.ok(Date.parse(row.startTimeUtc) <= Date.parse(row.endTimeUtc));
      }
    },
  },
  {
    name: 'a method job calls every device',
    fact: 'scheduleDeviceMethod invokes the method on each device, with the payload, and keeps status and payload.',
    run: async (fresh) => {
      const made = [];
      for (let n = 0; n < 3; n += 1) {
        made.push(await worker(fresh, (request) => ({ status: 200 + n, payload: { got: request.payload } })));
      }
      const jobId = await methodJob(made.map((each) => each.deviceId), { payload: { by: 'ann' } });
      assert.deepEqual((await finished(jobId)).deviceJobStatistics, statistics(3, 3));
      const outcomes = (await jobRows(jobId)).map((row) => row.outcome.deviceMethodResponse);
      const expected = [200, 201, 202].map((status) => ({ status, payload: { got: { by: 'ann' } } }));
      assert.deepEqual(outcomes, expected);
      await Promise.all(made.map((each) => each.client.close()));
    },
  },
  {
    name: 'any answer is a success',
    fact: 'A device that answers with status 500 has done its part of the job.',
    run: async (fresh) => {
      const { deviceId, client } = await worker(fresh, () => ({ status: 500, payload: 'broken' }));
      const jobId = await methodJob([deviceId]);
      assert.deepEqual((await finished(jobId)).deviceJobStatistics, statistics(1, 1));
      const [row] = await jobRows(jobId);
      assert.deepEqual([row.status, row.outcome.deviceMethodResponse.status], ['completed', 500]);
      await client.close();
    },
  },
  {
    name: 'a device that is away fails',
    fact: 'A device that is not online has the error DeviceNotOnline; the job is completed with failedCount.',
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      const jobId = await methodJob(ids, {}, new Date(), 2);
      const job = await finished(jobId);
      assert.deepEqual([job.status, job.deviceJobStatistics], ['completed', statistics(1, 0, 1)]);
      const [row] = await jobRows(jobId);
      assert.deepEqual([row.status, row.error.code], ['failed', 'DeviceNotOnline']);
      assert.match(row.error.description, /Timed out waiting for device to connect/);
    },
  },
  {
    name: 'a device that is silent fails',
    fact: 'A device that does not answer within the response time-out fails, the others do not.',
    run: async (fresh) => {
      const good = await worker(fresh, () => ({ status: 200, payload: 'done' }));
      const silent = { deviceId: fresh() };
      silent.client = await connect(await createDevice(silent.deviceId));
      await onMethod(silent.client, 'other', () => ({ status: 200 }));
      const jobId = await methodJob([good.deviceId, silent.deviceId], { responseTimeoutInSeconds: 5 }, new Date(), 7);
      const job = await finished(jobId);
      assert.deepEqual(job.deviceJobStatistics, statistics(2, 1, 1));
      const failed = (await jobRows(jobId)).filter((row) => row.status === 'failed');
      assert.deepEqual(failed.map((row) => row.deviceId), [silent.deviceId]);
      await Promise.all([good.client.close(), silent.client.close()]);
    },
  },
  {
    name: 'a job over nobody',
    fact: 'A condition that selects no device is a completed job of no device.',
    run: async () => {
      const job = await finished(await twinJob(['nobody-at-all'], { tags: { a: 1 } }));
      assert.deepEqual([job.status, job.deviceJobStatistics], ['completed', statistics(0, 0)]);
    },
  },
  {
    name: 'a condition may ask for tags',
    fact: 'The condition of a job is the WHERE of a query over twins, evaluated at its start.',
    run: async (fresh) => {
      const ids = await devices(fresh, 3);
      const mark = randomUUID();
      for (const deviceId of ids.slice(0, 2)) await registry.updateTwin(deviceId, { tags: { mark } }, '*');
      const job = await finished(await twinJob(`tags.mark = '${mark}' AND deviceId != '${ids[0]}'`, { tags: { hit: 1 } }));
      assert.deepEqual(job.deviceJobStatistics, statistics(1, 1));
      assert.equal((await registry.getTwin(ids[1])).responseBody.tags.hit, 1);
    },
  },
  {
    name: 'a whole query is no condition',
    fact: 'A condition that does not parse is taken, and the job fails with a failureReason.',
    run: async () => {
      const job = await finished(await twinJob("SELECT * FROM devices WHERE deviceId = 'd'", { tags: { a: 1 } }));
      assert.equal(job.status, 'failed');
      assert.match(job.failureReason, /SELECT/);
    },
  },
  {
    name: 'a job of the past begins now',
    fact: 'A startTime that has passed is no error: the job runs at once.',
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      const job = await finished(await twinJob(ids, { tags: { a: 1 } }, new Date(Date.now() - HOUR)));
      assert.deepEqual([job.status, job.deviceJobStatistics], ['completed', statistics(1, 1)]);
    },
  },
  {
    name: 'a job of the future waits',
    fact: 'Until its startTime a job is queued or scheduled, and touches nothing; startTime is the one asked for.',
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      const start = new Date(Date.now() + HOUR);
      const jobId = await twinJob(ids, { tags: { a: 1 } }, start);
      const { jobStatus } = await jobs.getJob(jobId);
      assert.ok(['queued', 'scheduled'].includes(jobStatus.status), jobStatus.status);
      assert.equal(Date.parse(jobStatus.startTime), start.getTime());
      assert.equal((await registry.getTwin(ids[0])).responseBody.version, 1);
      await jobs.cancelJob(jobId);
    },
  },
  {
    name: 'a job begins at its time',
    fact: 'A job runs once its startTime has come.',
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      const start = Date.now() + 1_500;
      const job = await finished(await twinJob(ids, { tags: { a: 1 } }, new Date(start)));
      assert.equal(job.status, 'completed');
      assert.ok(Date.parse(job.endTime) >= start, job.endTime);
    },
  },
  {
    name: 'a job that waits can be cancelled',
    fact: 'POST /jobs/v2/{id}/cancel ends a job that has not begun as cancelled, and it never runs.',
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      const jobId = await twinJob(ids, { tags: { a: 1 } }, new Date(Date.now() + HOUR));
      const { response } = await jobs.cancelJob(jobId);
      assert.equal(response.statusCode, 200);
      assert.equal((await finished(jobId)).status, 'cancelled');
      assert.equal((await registry.getTwin(ids[0])).responseBody.version, 1);
    },
  },
  {
    name: 'a job that has ended cannot be cancelled',
    fact: 'Cancelling a job that has ended is refused with JobRunPreconditionFailed (choice).',
    run: async (fresh) => {
      const jobId = await twinJob(await devices(fresh, 1), { tags: { a: 1 } });
      await finished(jobId);
      await refused(jobs.cancelJob(jobId), 412, 'InvalidEtagError', 'ErrorCode:JobRunPreconditionFailed');
      assert.equal((await jobs.getJob(jobId)).jobStatus.status, 'completed');
    },
  },
  {
    name: 'a job id is used once',
    fact: 'PUT of a job id that is there is 409 JobAlreadyExists, even when that job has ended.',
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      const jobId = await twinJob(ids, { tags: { a: 1 } });
      await finished(jobId);
      const again = twinJob(ids, { tags: { a: 2 } }, new Date(), jobId);
      await refused(again, 409, 'DeviceAlreadyExistsError', 'ErrorCode:JobAlreadyExists');
    },
  },
  {
    name: 'an unknown job is not found',
    fact: 'GET and cancel of an unknown job are 404 JobNotFound, which the SDK has no class for.',
    run: async () => {
      await refused(jobs.getJob(randomUUID()), 404, 'Error', 'ErrorCode:JobNotFound');
      await refused(jobs.cancelJob(randomUUID()), 404, 'Error', 'ErrorCode:JobNotFound');
    },
  },
  {
    name: 'a twin job takes the etag *',
    fact: 'updateTwin needs "etag": "*"; another, or none, is 412 PreconditionFailed.',
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      for (const etag of ['AAAAAAAAAAE=', undefined]) {
        const call = twinJob(ids, { etag, tags: { a: 1 } });
        await refused(call, 412, 'InvalidEtagError', 'ErrorCode:PreconditionFailed');
      }
    },
  },
  {
    name: 'desired properties belong inside properties',
    fact: 'updateTwin with desired beside properties is 400 ArgumentInvalid.',
    run: async (fresh) => {
      const call = twinJob(await devices(fresh, 1), { desired: { a: 1 } });
      await refused(call, 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
    },
  },
  {
    name: 'a window has at least a second',
    fact: 'maxExecutionTimeInSeconds is positive (choice: up to 30 days).',
    run: async () => {
      const call = jobs.scheduleTwinUpdate(randomUUID(), '*', { etag: '*', tags: {} }, new Date(), -1);
      await refused(call, 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
    },
  },
  {
    name: 'a wrong method is refused at once',
    fact: 'cloudToDeviceMethod keeps the rules of a direct method.',
    run: async () => {
      const wrong = { methodName: 'work', responseTimeoutInSeconds: 1 };
      const call = jobs.scheduleDeviceMethod(randomUUID(), '*', wrong, new Date(), 60);
      await refused(call, 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
    },
  },
  {
    name: 'jobs are listed by type and status',
    fact: 'GET /jobs/v2/query filters by jobType and jobStatus and answers an array.',
    run: async (fresh) => {
      const done = await twinJob(await devices(fresh, 1), { tags: { a: 1 } });
      await finished(done);
      const cancelled = await twinJob(['x'], { tags: { a: 1 } }, new Date(Date.now() + HOUR));
      await jobs.cancelJob(cancelled);
      await finished(cancelled);
      const list = async (type, status) => {
        const cursor = jobs.createQuery(type, status, 100);
        const found = [];
        while (cursor.hasMoreResults) {
          found.push(...(await new Promise((resolve, reject) => {
            cursor.next((error, results) => (error ? reject(error) : resolve(results)));
          })));
        }
        return found;
      };
      const completed = await list('scheduleUpdateTwin', 'completed');
      assert.ok(completed.some((job) => job.jobId === done));
      assert.ok(completed.every((job) => job.type === 'scheduleUpdateTwin' && job.status === 'completed'));
      assert.ok((await list('scheduleUpdateTwin', 'cancelled')).some((job) => job.jobId === cancelled));
      assert.ok(!(await list('scheduleDeviceMethod', null)).some((job) => [done, cancelled].includes(job.jobId)));
    },
  },
  {
    name: 'jobs are listed in pages',
    fact: '/jobs/v2/query has pages: x-ms-max-item-count in, x-ms-continuation both ways, none on the last page.',
    alone: true,
    run: async (fresh) => {
      const ids = await devices(fresh, 1);
      for (let n = 0; n < 3; n += 1) await finished(await twinJob(ids, { tags: { n } }));
      const cursor = jobs.createQuery('scheduleUpdateTwin', 'completed', 2);
      const sizes = [];
      const seen = new Set();
      while (cursor.hasMoreResults) {
        const page = await new Promise((resolve, reject) => {
          cursor.next((error, results) => (error ? reject(error) : resolve(results)));
        });
        sizes.push(page.length);
        page.forEach((job) => seen.add(job.jobId));
      }
      assert.ok(sizes.length > 1 && sizes.slice(0, -1).every((size) => size === 2) && sizes.at(-1) >= 1, `${sizes}`);
      assert.equal(seen.size, sizes.reduce((sum, size) => sum + size));
    },
  },
  {
    name: 'rows are found by device and by status',
    fact: 'FROM devices.jobs takes conditions on deviceId, jobId, jobType and status.',
    run: async (fresh) => {
      const ids = await devices(fresh, 3);
      const jobId = await twinJob(ids, { tags: { a: 1 } });
      await finished(jobId);
      const find = async (condition) => (await query(`SELECT * FROM devices.jobs WHERE ${condition}`)).rows;
      assert.equal((await find(`devices.jobs.deviceId = '${ids[0]}'`)).length, 1);
      assert.equal((await find(`devices.jobs.jobId = '${jobId}' AND devices.jobs.status = 'completed'`)).length, 3);
      assert.equal((await find(`devices.jobs.jobId = '${jobId}' AND devices.jobs.status = 'failed'`)).length, 0);
      assert.equal((await find(`devices.jobs.jobId = '${jobId}' AND jobType = 'scheduleDeviceMethod'`)).length, 0);
    },
  },
]);
