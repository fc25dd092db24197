'use strict';
// Jobs of the SDK over devices whose behaviour is the example plugins.

const { randomUUID } = require('node:crypto');
const { among, assert, finished, jobRows, jobs, main, registry, service, statistics, until } = require('./support');

const DOORS = [1, 2, 3, 4, 5].map((number) => `door-000${number}`);

main(async () => {
  await lockAll();
  await place();
  await refusedValue();
  const { result } = await service.invokeDeviceMethod(DOORS[0], { methodName: 'unlockDoor', payload: { by: 'ann' } });
  assert.deepEqual(result, { status: 200, payload: { locked: false, count: 2, version: '1.0.0' } });
});

async function lockAll() {
  const jobId = randomUUID();
  const method = { methodName: 'lockDoor', payload: null, responseTimeoutInSeconds: 15 };
  await jobs.scheduleDeviceMethod(jobId, among(DOORS), method, new Date(), 300);
  const job = await finished(jobId);
  assert.equal(job.status, 'completed');
  assert.deepEqual(job.deviceJobStatistics, statistics(5, 5));
  const rows = await jobRows(jobId);
  assert.deepEqual(rows.map((row) => row.deviceId), DOORS);
  for (const row of rows) {
    assert.equal(row.status, 'completed');
    const payload = { locked: true, count: 1, version: '1.0.0' };
    assert.deepEqual(row.outcome.deviceMethodResponse, { status: 200, payload });
  }
  for (const deviceId of DOORS) {
    await reported(deviceId, 'the lock', (properties) => properties.door?.locked === true);
  }
}

async function place() {
  const jobId = randomUUID();
  const patch = { etag: '*', properties: { desired: { building: '43', floor: 3 } } };
  await jobs.scheduleTwinUpdate(jobId, '*', patch, new Date(), 300);
  const job = await finished(jobId);
  assert.equal(job.status, 'completed');
  assert.deepEqual(job.deviceJobStatistics, statistics(5, 5));
  for (const deviceId of DOORS) {
    const twin = await reported(deviceId, 'the place', (properties) => properties.building && properties.floor);
    const { building, floor } = twin.properties.reported;
    assert.deepEqual([building.value, building.ac], ['43', 200]);
    assert.deepEqual([floor.value, floor.ac], [3, 200]);
    assert.equal(building.av, twin.properties.desired.$version);
  }
}

async function refusedValue() {
  const deviceId = DOORS[1];
  await registry.updateTwin(deviceId, { properties: { desired: { floor: 9999 } } }, '*');
  const twin = await reported(deviceId, 'the refusal', (properties) => properties.floor.ac === 400);
  assert.equal(twin.properties.reported.floor.value, 3, 'the old value stays in force');
}

/** The twin, once its reported properties are as wanted. */
function reported(deviceId, what, wanted) {
  return until(`${deviceId} reports ${what}`, async () => {
    const { responseBody: twin } = await registry.getTwin(deviceId);
    return wanted(twin.properties.reported) && twin;
  });
}
