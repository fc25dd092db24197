'use strict';
// What the scripts share: the hub's addresses, the SDK's clients, waiting, and the end of the process.

const assert = require('node:assert/strict');
const { execFile } = require('node:child_process');
const { createHmac } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: pause } = require('node:timers/promises');
const { promisify } = require('node:util');
const device = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const iothub = require('azure-iothub');

/** Longer than anything here takes on a slow machine, shorter than the test's patience. */
const PATIENCE = 80_000;
const FINAL = ['completed', 'failed', 'cancelled'];

const data = process.env.LATCH_DATA;
const serviceString = fs.readFileSync(path.join(data, 'service.connstr'), 'utf8').trim();
const registry = iothub.Registry.fromConnectionString(serviceString);
const jobs = iothub.JobClient.fromConnectionString(serviceString);
const service = iothub.Client.fromConnectionString(serviceString);

/** Runs the script; its failure is the process's. The SDK's open sockets do not keep the process. */
function main(run) {
  const tooLong = setTimeout(() => {
    console.error('the script has not ended in time');
    process.exit(2);
  }, PATIENCE);
  run().then(
    () => {
      clearTimeout(tooLong);
      process.exit(0);
    },
    (error) => {
      // Not the whole error: it holds the whole connection.
      console.error(error.stack, error.responseBody ?? '');
      process.exit(1);
    },
  );
}

/** Asks until the answer is truthy, and gives it. */
async function until(what, ask, patience = 20_000) {
  const deadline = Date.now() + patience;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    assert.ok(Date.now() < deadline, `${what}: not in time`);
    await pause(50);
  }
}

/** The event, or a failure that names it. */
function event(emitter, name, patience = 20_000) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`no event '${name}' in time`)), patience);
    emitter.once(name, (value) => {
      clearTimeout(late);
      resolve(value);
    });
  });
}

/** Creates a device as an application does; gives its connection string. */
async function createDevice(deviceId) {
  const { responseBody: created } = await registry.create({ deviceId });
  assert.equal(created.deviceId, deviceId);
  assert.equal(created.status, 'enabled');
  const key = created.authentication.symmetricKey.primaryKey;
  assert.equal(Buffer.from(key, 'base64').length, 32, 'the hub makes a key of 32 bytes');
  return `HostName=${hostName()};DeviceId=${deviceId};SharedAccessKey=${key}`;
}

function hostName() {
  return iothub.ConnectionString.parse(serviceString).HostName;
}

/** A connected client of that device. */
async function connect(connectionString) {
  const client = device.Client.fromConnectionString(connectionString, Mqtt);
  client.on('error', (error) => console.error('device client:', error.message));
  await client.open();
  return client;
}

/** A shared access signature that ends `seconds` from now, made by hand: the SDK would make none of the past. */
function token(resource, key, seconds, policy) {
  const expiry = Math.floor(Date.now() / 1000) + seconds;
  const encoded = encodeURIComponent(resource);
  const signature = createHmac('sha256', Buffer.from(key, 'base64')).update(`${encoded}\n${expiry}`).digest('base64');
  const fields = [`sr=${encoded}`, `sig=${encodeURIComponent(signature)}`, `se=${expiry}`];
  return `SharedAccessSignature ${fields.concat(policy ? [`skn=${policy}`] : []).join('&')}`;
}

async function connectByToken(signature) {
  const client = device.Client.fromSharedAccessSignature(signature, Mqtt);
  client.on('error', (error) => console.error('device client:', error.message));
  await client.open();
  return client;
}

/**
 * Answers a direct method from now on, and waits until the hub knows: the SDK subscribes in the background, and what a
 * device sends the hub handles in order.
 */
async function onMethod(client, name, answer) {
  client.onDeviceMethod(name, (request, response) => {
    const { status, payload } = answer(request);
    response.send(status, payload).catch((error) => console.error('method response:', error.message));
  });
  await client.getTwin();
}

/** The job once it has ended, however. */
function finished(jobId) {
  return until(`job ${jobId} ends`, async () => {
    const { jobStatus } = await jobs.getJob(jobId);
    return FINAL.includes(jobStatus.status) && jobStatus;
  });
}

/** Runs a command of `latch` on the hub's data folder; gives its stdout. */
async function latch(...args) {
  const { stdout } = await promisify(execFile)(process.env.LATCH, [...args, '--data', data]);
  return stdout;
}

/** All rows of a query and the sizes of its pages. */
async function query(sql, pageSize) {
  const cursor = registry.createQuery(sql, pageSize);
  const rows = [];
  const pages = [];
  while (cursor.hasMoreResults) {
    // With a callback, as in the tutorial: without one `next` forgets the continuation token.
    const page = await new Promise((resolve, reject) => {
      cursor.next((error, results) => (error ? reject(error) : resolve(results)));
    });
    rows.push(...page);
    pages.push(page.length);
  }
  return { rows, pages };
}

/** Every device's row of a job, by device id. */
async function jobRows(jobId) {
  const { rows } = await query(`SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '${jobId}'`, 100);
  return rows.sort((a, b) => (a.deviceId < b.deviceId ? -1 : 1));
}

/** `deviceId IN ['a', 'b']` */
function among(deviceIds) {
  return `deviceId IN [${deviceIds.map((id) => `'${id}'`).join(', ')}]`;
}

function statistics(deviceCount, succeededCount, failedCount = 0) {
  return { deviceCount, failedCount, succeededCount, runningCount: 0, pendingCount: 0 };
}

module.exports = {
  Mqtt,
  among,
  assert,
  connect,
  connectByToken,
  createDevice,
  device,
  event,
  finished,
  hostName,
  iothub,
  jobRows,
  jobs,
  latch,
  main,
  onMethod,
  query,
  registry,
  service,
  serviceString,
  statistics,
  token,
  until,
};
