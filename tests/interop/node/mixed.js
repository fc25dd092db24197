'use strict';
// One job over Latch's devices, one of the SDK's, and one that is not there.

const { randomUUID } = require('node:crypto');
const {
  among,
  assert,
  connect,
  createDevice,
  finished,
  jobRows,
  jobs,
  main,
  onMethod,
  registry,
  statistics,
} = require('./support');

const DOORS = [1, 2, 3, 4, 5].map((number) => `door-000${number}`);

main(async () => {
  const client = await connect(await createDevice('sdk-1'));
  await createDevice('sdk-away');
  await onMethod(client, 'lockDoor', (request) => ({ status: 202, payload: { seen: request.payload } }));

  const jobId = randomUUID();
  const method = { methodName: 'lockDoor', payload: { by: 'ann' }, responseTimeoutInSeconds: 15 };
  // The window ends soon, so that the device that stays away is given up.
  await jobs.scheduleDeviceMethod(jobId, among([...DOORS, 'sdk-1', 'sdk-away']), method, new Date(), 4);
  const job = await finished(jobId);
  assert.equal(job.status, 'completed');
  assert.deepEqual(job.deviceJobStatistics, statistics(7, 6, 1));

  const rows = await jobRows(jobId);
  assert.deepEqual(rows.map((row) => row.deviceId), [...DOORS, 'sdk-1', 'sdk-away']);
  const [sdk, away] = rows.slice(5);
  for (const row of rows.slice(0, 5)) {
    const payload = { locked: true, count: 1, version: '1.0.0' };
    assert.deepEqual(row.outcome.deviceMethodResponse, { status: 200, payload });
  }
  assert.equal(sdk.status, 'completed');
  assert.deepEqual(sdk.outcome.deviceMethodResponse, { status: 202, payload: { seen: { by: 'ann' } } });
  assert.equal(away.status, 'failed');
  assert.equal(away.error.code, 'DeviceNotOnline');

  const twinJobId = randomUUID();
  const patch = { etag: '*', tags: { site: 'north' } };
  await jobs.scheduleTwinUpdate(twinJobId, '*', patch, new Date(), 60);
  assert.deepEqual((await finished(twinJobId)).deviceJobStatistics, statistics(7, 7));
  const { responseBody: twin } = await registry.getTwin('sdk-away');
  assert.deepEqual(twin.tags, { site: 'north' });
  await client.close();
});
