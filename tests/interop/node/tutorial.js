'use strict';
// A device and a back end, both by the SDK: the tutorial "schedule and broadcast jobs", then what is near it.

const { randomUUID } = require('node:crypto');
const {
  among,
  assert,
  connect,
  createDevice,
  device,
  finished,
  jobRows,
  jobs,
  main,
  onMethod,
  query,
  registry,
  service,
  statistics,
  until,
} = require('./support');

const DEVICE_ID = 'myDeviceId';

main(async () => {
  const connectionString = await createDevice(DEVICE_ID);
  const client = await connect(connectionString);
  const calls = [];
  await onMethod(client, 'lockDoor', (request) => {
    calls.push(request);
    return { status: 200, payload: 'Door locked' };
  });
  const twin = await client.getTwin();
  const deltas = [];
  twin.on('properties.desired', (delta) => deltas.push(JSON.parse(JSON.stringify(delta))));
  await twin.get();

  // Takes five seconds, so it goes on beside the rest.
  const silent = assert.rejects(
    service.invokeDeviceMethod(DEVICE_ID, { methodName: 'nobodyAnswers', responseTimeoutInSeconds: 5 }),
    { name: 'GatewayTimeoutError', responseBody: /504101/ },
  );
  await methodJob(calls);
  await twinJob(deltas);
  await reported(twin);
  await directMethod(calls);
  await telemetry(client);
  await cancelledJob();
  await jobQuery();
  await bulk();
  await queries();
  await errors();
  await silent;

  await client.close();
  await offline();
  await deletion();
});

async function methodJob(calls) {
  const jobId = randomUUID();
  const scheduled = await jobs.scheduleDeviceMethod(
    jobId,
    among([DEVICE_ID]),
    { methodName: 'lockDoor', payload: null, responseTimeoutInSeconds: 15 },
    new Date(),
    300,
  );
  assert.equal(scheduled.response.statusCode, 200);
  assert.equal(scheduled.jobStatus.jobId, jobId);
  assert.equal(scheduled.jobStatus.type, 'scheduleDeviceMethod');
  assert.equal(scheduled.jobStatus.status, 'queued');

  const job = await finished(jobId);
  assert.equal(job.status, 'completed');
  assert.equal(job.queryCondition, among([DEVICE_ID]));
  assert.equal(job.maxExecutionTimeInSeconds, 300);
  assert.equal(job.cloudToDeviceMethod.methodName, 'lockDoor');
  assert.deepEqual(job.deviceJobStatistics, statistics(1, 1));
  assert.ok(Date.parse(job.createdTime) <= Date.parse(job.endTime));
  assert.equal(calls.length, 1);
  assert.equal(calls[0].payload, null);

  const rows = await jobRows(jobId);
  assert.equal(rows.length, 1);
  assert.equal(rows[0].deviceId, DEVICE_ID);
  assert.equal(rows[0].jobId, jobId);
  assert.equal(rows[0].jobType, 'scheduleDeviceMethod');
  assert.equal(rows[0].status, 'completed');
  assert.deepEqual(rows[0].outcome.deviceMethodResponse, { status: 200, payload: 'Door locked' });
  for (const time of ['startTimeUtc', 'endTimeUtc', 'createdDateTimeUtc', 'lastUpdatedDateTimeUtc']) {
    assert.ok(Number.isFinite(Date.parse(rows[0][time])), time);
  }
}

async function twinJob(deltas) {
  const jobId = randomUUID();
  const patch = { etag: '*', properties: { desired: { building: '43', floor: 3 } } };
  await jobs.scheduleTwinUpdate(jobId, among([DEVICE_ID]), patch, new Date(), 300);
  const job = await finished(jobId);
  assert.equal(job.status, 'completed');
  assert.equal(job.type, 'scheduleUpdateTwin');
  assert.deepEqual(job.deviceJobStatistics, statistics(1, 1));
  const delta = await until('the device sees the change', () => deltas.find((each) => each.building === '43'));
  const { responseBody: twin } = await registry.getTwin(DEVICE_ID);
  assert.deepEqual(delta, { building: '43', floor: 3, $version: twin.properties.desired.$version });
}

async function reported(deviceTwin) {
  await new Promise((resolve, reject) => {
    const state = { firmware: { version: '1.2' }, passing: true };
    deviceTwin.properties.reported.update(state, (error) => (error ? reject(error) : resolve()));
  });
  await new Promise((resolve, reject) => {
    deviceTwin.properties.reported.update({ passing: null }, (error) => (error ? reject(error) : resolve()));
  });
  const { responseBody: twin } = await registry.getTwin(DEVICE_ID);
  assert.deepEqual(twin.properties.reported.firmware, { version: '1.2' });
  assert.ok(!('passing' in twin.properties.reported), 'null removes');
  assert.equal(twin.properties.reported.$version, 3);
  assert.equal(twin.connectionState, 'Connected');
}

async function directMethod(calls) {
  const payload = { by: 'ann', rooms: [1, 2], note: 'grün' };
  const { result, message } = await service.invokeDeviceMethod(DEVICE_ID, { methodName: 'lockDoor', payload });
  assert.equal(message.statusCode, 200);
  assert.deepEqual(result, { status: 200, payload: 'Door locked' });
  assert.deepEqual(calls.at(-1).payload, payload);
}

async function telemetry(client) {
  const message = new device.Message(JSON.stringify({ temperature: 21.5 }));
  message.messageId = 'first one';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('a key', 'a/value');
  await client.sendEvent(message);
}

async function cancelledJob() {
  const jobId = randomUUID();
  const inAnHour = new Date(Date.now() + 3_600_000);
  await jobs.scheduleDeviceMethod(jobId, '*', { methodName: 'lockDoor' }, inAnHour, 60);
  const { jobStatus } = await jobs.getJob(jobId);
  assert.ok(['queued', 'scheduled'].includes(jobStatus.status), jobStatus.status);
  await jobs.cancelJob(jobId);
  assert.equal((await finished(jobId)).status, 'cancelled');
}

async function jobQuery() {
  const cursor = jobs.createQuery('scheduleUpdateTwin', 'completed', 10);
  const page = await new Promise((resolve, reject) => {
    cursor.next((error, results) => (error ? reject(error) : resolve(results)));
  });
  assert.equal(cursor.hasMoreResults, false);
  assert.deepEqual(page.map((job) => [job.type, job.status]), [['scheduleUpdateTwin', 'completed']]);
}

async function bulk() {
  const devices = ['bulk-1', 'bulk-2'].map((deviceId) => ({ deviceId }));
  const { responseBody: added } = await registry.addDevices(devices);
  assert.equal(added.isSuccessful, true);
  assert.deepEqual(added.errors, []);
  assert.equal((await registry.get('bulk-2')).responseBody.status, 'enabled');
  const { responseBody: removed } = await registry.removeDevices(devices, true);
  assert.equal(removed.isSuccessful, true);
  await assert.rejects(registry.get('bulk-2'), { name: 'DeviceNotFoundError' });
}

async function queries() {
  const fleet = [1, 2, 3, 4, 5].map((number) => `paged-${number}`);
  for (const deviceId of fleet) await createDevice(deviceId);
  for (const [index, deviceId] of fleet.entries()) {
    const tags = { fleet: 'paged', parity: index % 2 ? 'even' : 'odd', place: { floor: index + 1 } };
    await registry.updateTwin(deviceId, { tags }, '*');
  }

  const paged = await query("SELECT * FROM devices WHERE tags.fleet = 'paged'", 2);
  assert.deepEqual(paged.pages, [2, 2, 1]);
  assert.deepEqual(paged.rows.map((row) => row.deviceId).sort(), fleet);
  const whole = await query("SELECT * FROM devices WHERE tags.fleet = 'paged'");
  assert.deepEqual(whole.pages, [5]);
  const { result: twins } = await registry.createQuery("SELECT * FROM devices WHERE deviceId = 'paged-3'").nextAsTwin();
  assert.equal(twins[0].deviceId, 'paged-3');
  assert.equal(twins[0].tags.place.floor, 3);

  const check = async (sql, expected) => assert.deepEqual((await query(sql)).rows, expected, sql);
  await check("SELECT COUNT() AS total FROM devices WHERE tags.fleet = 'paged'", [{ total: 5 }]);
  await check("SELECT deviceId FROM devices WHERE tags.fleet = 'paged' AND tags.place.floor > 4", [
    { deviceId: 'paged-5' },
  ]);
  await check("SELECT deviceId FROM devices WHERE tags.place.floor IN [2, 9] OR tags.fleet = 'none'", [
    { deviceId: 'paged-2' },
  ]);
  await check('SELECT deviceId FROM devices WHERE IS_DEFINED(properties.reported.firmware)', [
    { deviceId: DEVICE_ID },
  ]);
  await check("SELECT * FROM devices WHERE deviceId = 'nobody'", []);
  const groups = await query(
    "SELECT tags.parity AS parity, COUNT() AS n FROM devices WHERE tags.fleet = 'paged' GROUP BY tags.parity",
  );
  assert.deepEqual(
    groups.rows.sort((a, b) => a.n - b.n),
    [
      { parity: 'even', n: 2 },
      { parity: 'odd', n: 3 },
    ],
  );
}

async function errors() {
  const refused = (call, expected) => assert.rejects(call, expected);
  await refused(registry.create({ deviceId: DEVICE_ID }), { name: 'DeviceAlreadyExistsError' });
  await refused(registry.get('nobody'), { name: 'DeviceNotFoundError' });
  await refused(registry.getTwin('nobody'), { name: 'DeviceNotFoundError' });
  await refused(registry.updateTwin(DEVICE_ID, { tags: { a: 1 } }, 'AAAAAAAAAAA='), { name: 'InvalidEtagError' });
  await refused(query('SELECT FROM devices WHERE'), { name: 'ArgumentError' });
  await refused(jobs.getJob('no-such-job'), { message: 'Not found', responseBody: /JobNotFound/ });
  await refused(service.invokeDeviceMethod('nobody', { methodName: 'lockDoor' }), {
    message: 'Not found',
    responseBody: /404001/,
  });
  await refused(service.invokeDeviceMethod(DEVICE_ID, { methodName: 'lockDoor', responseTimeoutInSeconds: 3 }), {
    name: 'ArgumentError',
  });
  const jobId = randomUUID();
  const inAnHour = new Date(Date.now() + 3_600_000);
  await jobs.scheduleDeviceMethod(jobId, '*', { methodName: 'lockDoor' }, inAnHour, 60);
  await refused(jobs.scheduleDeviceMethod(jobId, '*', { methodName: 'lockDoor' }, inAnHour, 60), {
    name: 'DeviceAlreadyExistsError',
    responseBody: /JobAlreadyExists/,
  });
  await jobs.cancelJob(jobId);
}

async function offline() {
  const call = () => service.invokeDeviceMethod(DEVICE_ID, { methodName: 'lockDoor' });
  await assert.rejects(call(), (error) => {
    assert.equal(error.message, 'Not found');
    assert.equal(error.response.statusCode, 404);
    assert.match(error.responseBody, /404103/);
    return true;
  });
}

async function deletion() {
  const { httpResponse } = await registry.delete(DEVICE_ID);
  assert.equal(httpResponse.statusCode, 204);
  await assert.rejects(registry.get(DEVICE_ID), { name: 'DeviceNotFoundError' });
}
