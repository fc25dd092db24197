'use strict';
// Many devices in one request, by azure-iothub.

const { assert, createDevice, registry } = require('../support');
const { refused, suite } = require('./suite');

/** Of a request that failed in part: which devices and why. */
async function failures(call) {
  let found;
  await assert.rejects(call, (error) => {
    assert.deepEqual([error.name, error.response?.statusCode], ['ArgumentError', 400]);
    const body = JSON.parse(error.responseBody);
    assert.equal(body.isSuccessful, false);
    found = body.errors.map((each) => [each.deviceId, each.errorCode]);
    return true;
  });
  return found;
}

suite([
  {
    name: 'many are created at once',
    fact: 'POST /devices with importMode create answers 200 with isSuccessful and no errors.',
    run: async (fresh) => {
      const devices = Array.from({ length: 100 }, () => ({ deviceId: fresh() }));
      const { responseBody, httpResponse } = await registry.addDevices(devices);
      assert.equal(httpResponse.statusCode, 200);
      assert.deepEqual(responseBody, { isSuccessful: true, errors: [], warnings: [] });
      assert.equal((await registry.get(devices[99].deviceId)).responseBody.status, 'enabled');
    },
  },
  {
    name: 'a device is there once in a request',
    fact: 'An id that is there twice in one request is 400 DeviceDefinedMultipleTimes, and nothing is done.',
    run: async (fresh) => {
      const deviceId = fresh();
      const call = registry.addDevices([{ deviceId }, { deviceId }]);
      await refused(call, 400, 'ArgumentError', 'ErrorCode:DeviceDefinedMultipleTimes');
      await refused(registry.get(deviceId), 404, 'DeviceNotFoundError', 'DeviceNotFound');
    },
  },
  {
    name: 'what can be done is done',
    fact: 'Items are independent: one that is there already is an error of its own, with status 400, and the rest is done.',
    run: async (fresh) => {
      const [old, young] = [fresh(), fresh()];
      await createDevice(old);
      const call = registry.addDevices([{ deviceId: old }, { deviceId: young }]);
      assert.deepEqual(await failures(call), [[old, 'DeviceAlreadyExists']]);
      assert.equal((await registry.get(young)).responseBody.deviceId, young);
    },
  },
  {
    name: 'keys and status go with a creation',
    fact: 'authentication and status of an item are those of the device.',
    run: async (fresh) => {
      const deviceId = fresh();
      const [primaryKey, secondaryKey] = [1, 2].map((byte) => Buffer.alloc(32, byte).toString('base64'));
      const authentication = { type: 'sas', symmetricKey: { primaryKey, secondaryKey } };
      await registry.addDevices([{ deviceId, status: 'disabled', authentication }]);
      const { responseBody } = await registry.get(deviceId);
      assert.equal(responseBody.status, 'disabled');
      assert.deepEqual({ ...responseBody.authentication.symmetricKey }, { primaryKey, secondaryKey });
    },
  },
  {
    name: 'an update by force needs no etag',
    fact: 'importMode update changes whatever is there.',
    run: async (fresh) => {
      const deviceId = fresh();
      await createDevice(deviceId);
      await registry.updateDevices([{ deviceId, status: 'disabled' }], true);
      assert.equal((await registry.get(deviceId)).responseBody.status, 'disabled');
    },
  },
  {
    name: 'an update may ask for an etag',
    fact: 'importMode updateIfMatchETag changes a device whose etag is the given one.',
    run: async (fresh) => {
      const { responseBody: identity } = await registry.create({ deviceId: fresh() });
      const { deviceId, etag } = identity;
      await registry.updateDevices([{ deviceId, etag, status: 'disabled' }], false);
      assert.equal((await registry.get(deviceId)).responseBody.status, 'disabled');
      const again = registry.updateDevices([{ deviceId, etag, status: 'enabled' }], false);
      assert.deepEqual(await failures(again), [[deviceId, 'PreconditionFailed']]);
      assert.equal((await registry.get(deviceId)).responseBody.status, 'disabled');
    },
  },
  {
    name: 'an update needs a device',
    fact: 'importMode update of an id that is not there is DeviceNotFound.',
    run: async (fresh) => {
      const deviceId = fresh('nobody');
      const call = registry.updateDevices([{ deviceId, status: 'enabled' }], true);
      assert.deepEqual(await failures(call), [[deviceId, 'DeviceNotFound']]);
    },
  },
  {
    name: 'many are removed at once',
    fact: 'importMode delete removes whatever is there, and the answer is 200.',
    run: async (fresh) => {
      const devices = [{ deviceId: fresh() }, { deviceId: fresh() }];
      await registry.addDevices(devices);
      const { responseBody } = await registry.removeDevices(devices, true);
      assert.equal(responseBody.isSuccessful, true);
      for (const { deviceId } of devices) {
        await refused(registry.get(deviceId), 404, 'DeviceNotFoundError', 'DeviceNotFound');
      }
    },
  },
  {
    name: 'a removal may ask for an etag',
    fact: 'importMode deleteIfMatchETag leaves a device whose etag is another.',
    run: async (fresh) => {
      const { responseBody: identity } = await registry.create({ deviceId: fresh() });
      const { deviceId, etag } = identity;
      const stale = registry.removeDevices([{ deviceId, etag: 'MA==' }], false);
      assert.deepEqual(await failures(stale), [[deviceId, 'PreconditionFailed']]);
      assert.equal((await registry.get(deviceId)).responseBody.deviceId, deviceId);
      await registry.removeDevices([{ deviceId, etag }], false);
      await refused(registry.get(deviceId), 404, 'DeviceNotFoundError', 'DeviceNotFound');
    },
  },
]);
