'use strict';
// The hub is killed under a hundred devices while back ends change their twins. What was answered is there afterwards,
// and every device hears of every change once.

const readline = require('node:readline');
const { assert, connect, createDevice, event, main, onMethod, registry, service, until } = require('./support');

const DEVICES = Array.from({ length: 100 }, (_, index) => `hundred-${String(index).padStart(3, '0')}`);

main(async () => {
  const devices = await Promise.all(DEVICES.map(begin));
  await change(devices, 'before');
  await until('all hear of the first change', () => devices.every((each) => each.heard.includes('before')), 40_000);

  // Changes and reports go on until the hub is gone.
  const changing = Promise.all(devices.map(changeUntilItFails));
  await until('changes are under way', () => devices.every((each) => each.changed > 0), 40_000);
  const back = devices.map((each) => event(each.client, 'connect', 60_000));
  console.log('kill the hub');
  await event(readline.createInterface({ input: process.stdin }), 'line', 60_000);
  await changing;
  await Promise.all(back);

  const kept = await Promise.all(devices.map(compare));
  await change(devices, 'after');
  await until('all hear of the last change', () => devices.every((each) => each.heard.includes('after')), 40_000);
  for (const [index, each] of devices.entries()) {
    const { versions } = each;
    assert.deepEqual(versions, [...new Set(versions)].sort((a, b) => a - b), `${each.deviceId}: each once, in order`);
    assert.equal(versions.at(-1), kept[index] + 1, `${each.deviceId}: the change after the restart is the next`);
  }
  await Promise.all(devices.map(call));
  await Promise.all(devices.map((each) => each.client.close()));
});

async function begin(deviceId) {
  const client = await connect(await createDevice(deviceId));
  await onMethod(client, 'ping', () => ({ status: 200, payload: deviceId }));
  const twin = await client.getTwin();
  const device = { deviceId, client, heard: [], versions: [], changed: 0, reported: 0 };
  twin.on('properties.desired', (delta) => {
    // The SDK begins with what there is.
    if (delta.step === undefined) return;
    device.heard.push(delta.step);
    device.versions.push(delta.$version);
  });
  await twin.get();
  await report(twin, { alive: true });
  return device;
}

function report(twin, patch) {
  return new Promise((resolve, reject) => {
    twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
  });
}

/** Sets `step` of all devices. */
function change(devices, step) {
  return Promise.all(devices.map(({ deviceId }) => registry.updateTwin(deviceId, patchOf(step), '*')));
}

function patchOf(step) {
  return { tags: { step }, properties: { desired: { step } } };
}

/** Counts up, and remembers how far the hub has confirmed. */
async function changeUntilItFails(device) {
  for (;;) {
    try {
      await registry.updateTwin(device.deviceId, patchOf(device.changed + 1), '*');
    } catch {
      return;
    }
    device.changed += 1;
  }
}

/** Nothing that was confirmed is lost; gives the version of the desired properties. */
async function compare({ deviceId, changed }) {
  const { responseBody: twin } = await registry.getTwin(deviceId);
  const { desired, reported } = twin.properties;
  // The last change may have been made and not confirmed.
  assert.ok([changed, changed + 1].includes(desired.step), `${deviceId}: ${desired.step} after ${changed}`);
  assert.equal(twin.tags.step, desired.step, deviceId);
  // One, the first change, and each of the count.
  assert.equal(desired.$version, 2 + desired.step, deviceId);
  assert.deepEqual([reported.alive, reported.$version], [true, 2], deviceId);
  return desired.$version;
}

async function call({ deviceId }) {
  const method = { methodName: 'ping', connectTimeoutInSeconds: 20, responseTimeoutInSeconds: 20 };
  const { result } = await service.invokeDeviceMethod(deviceId, method);
  assert.deepEqual(result, { status: 200, payload: deviceId });
}
