'use strict';
// The identity registry by azure-iothub.

const { randomBytes } = require('node:crypto');
const { assert, connect, createDevice, hostName, registry, until } = require('../support');
const { refused, suite } = require('./suite');

const NEVER = '0001-01-01T00:00:00';

suite([
  {
    name: 'a device is created with two keys of the hub',
    fact: 'PUT /devices/{id} with empty keys makes two different keys of 32 bytes.',
    run: async (fresh) => {
      const { responseBody } = await registry.create({ deviceId: fresh() });
      const { primaryKey, secondaryKey } = responseBody.authentication.symmetricKey;
      assert.deepEqual([primaryKey, secondaryKey].map((key) => Buffer.from(key, 'base64').length), [32, 32]);
      assert.notEqual(primaryKey, secondaryKey);
    },
  },
  {
    name: 'a new identity has every member',
    fact: 'A new identity is enabled and disconnected, has 18 digits of generationId and an etag of a decimal number.',
    run: async (fresh) => {
      const deviceId = fresh();
      const { responseBody } = await registry.create({ deviceId });
      const identity = JSON.parse(JSON.stringify(responseBody));
      assert.equal(identity.deviceId, deviceId);
      assert.match(identity.generationId, /^\d{18}$/);
      assert.match(Buffer.from(identity.etag, 'base64').toString(), /^\d+$/);
      assert.equal(identity.status, 'enabled');
      assert.equal(identity.statusReason, null);
      assert.equal(identity.connectionState, 'Disconnected');
      for (const time of ['connectionStateUpdatedTime', 'statusUpdatedTime', 'lastActivityTime']) {
        assert.ok(identity[time].startsWith(NEVER), time);
      }
      assert.equal(identity.cloudToDeviceMessageCount, 0);
      assert.equal(identity.authentication.type, 'sas');
      assert.deepEqual(identity.capabilities, { iotEdge: false });
    },
  },
  {
    name: 'keys of one’s own are kept',
    fact: 'PUT /devices/{id} with keys keeps them as they are.',
    run: async (fresh) => {
      const [primaryKey, secondaryKey] = [randomBytes(32), randomBytes(64)].map((key) => key.toString('base64'));
      const deviceId = fresh();
      await registry.create({ deviceId, authentication: { symmetricKey: { primaryKey, secondaryKey } } });
      const { responseBody } = await registry.get(deviceId);
      assert.deepEqual({ ...responseBody.authentication.symmetricKey }, { primaryKey, secondaryKey });
    },
  },
  {
    name: 'a key that is no base64 is refused',
    fact: 'Keys are base64; anything else is 400 ArgumentInvalid.',
    run: async (fresh) => {
      const symmetricKey = { primaryKey: 'not a key', secondaryKey: 'not a key' };
      const deviceId = fresh();
      const create = registry.create({ deviceId, authentication: { symmetricKey } });
      await refused(create, 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
      await refused(registry.get(deviceId), 404, 'DeviceNotFoundError', 'DeviceNotFound');
    },
  },
  {
    name: 'a device is created once',
    fact: 'PUT without If-Match of an id that is there is 409 DeviceAlreadyExists.',
    run: async (fresh) => {
      const deviceId = fresh();
      await registry.create({ deviceId });
      const again = registry.create({ deviceId });
      await refused(again, 409, 'DeviceAlreadyExistsError', 'ErrorCode:DeviceAlreadyExists');
    },
  },
  {
    name: 'the header names the error',
    fact: 'Every error has the header iothub-errorcode with the name that its body has.',
    run: async (fresh) => {
      await assert.rejects(registry.get(fresh('nobody')), (error) => {
        assert.equal(error.response.headers['iothub-errorcode'], 'DeviceNotFound');
        const body = JSON.parse(error.responseBody);
        assert.match(body.Message, /^ErrorCode:DeviceNotFound;/);
        assert.match(body.ExceptionMessage, /^Tracking ID:[0-9a-f]{32}-G:\d+-TimeStamp:\d\d\/\d\d\/\d{4} \d\d:\d\d:\d\d$/);
        return true;
      });
    },
  },
  {
    name: 'a disabled device is created disabled',
    fact: 'status and statusReason of PUT are kept.',
    run: async (fresh) => {
      const deviceId = fresh();
      await registry.create({ deviceId, status: 'disabled', statusReason: 'not yet mounted' });
      const { responseBody } = await registry.get(deviceId);
      assert.deepEqual([responseBody.status, responseBody.statusReason], ['disabled', 'not yet mounted']);
    },
  },
  {
    name: 'a status reason has a limit',
    fact: 'statusReason is at most 128 characters.',
    run: async (fresh) => {
      await registry.create({ deviceId: fresh(), statusReason: 'ü'.repeat(128) });
      const create = registry.create({ deviceId: fresh(), statusReason: 'u'.repeat(129) });
      await refused(create, 400, 'ArgumentError', 'ArgumentInvalid');
    },
  },
  {
    name: 'a status is one of two',
    fact: 'status is enabled or disabled; anything else is 400.',
    run: async (fresh) => {
      await refused(registry.create({ deviceId: fresh(), status: 'off' }), 400, 'ArgumentError', 'ErrorCode:');
    },
  },
  {
    name: 'an update changes status, time and etag',
    fact: 'PUT with If-Match "*" updates; a change of status moves statusUpdatedTime; the etag is a new one.',
    run: async (fresh) => {
      const { responseBody: before } = await registry.create({ deviceId: fresh() });
      const start = Date.now();
      await registry.update({ ...before, status: 'disabled', statusReason: 'broken' });
      const { responseBody: after } = await registry.get(before.deviceId);
      assert.deepEqual([after.status, after.statusReason], ['disabled', 'broken']);
      assert.ok(Math.abs(Date.parse(after.statusUpdatedTime) - start) < 60_000, after.statusUpdatedTime);
      assert.notEqual(after.etag, before.etag);
      assert.equal(after.generationId, before.generationId);
    },
  },
  {
    name: 'an update keeps keys that it does not name',
    fact: 'PUT with If-Match and empty keys leaves the keys alone.',
    run: async (fresh) => {
      const { responseBody: before } = await registry.create({ deviceId: fresh() });
      await registry.update({ deviceId: before.deviceId, status: 'enabled' });
      const { responseBody: after } = await registry.get(before.deviceId);
      assert.deepEqual(after.authentication.symmetricKey, before.authentication.symmetricKey);
    },
  },
  {
    name: 'an update of keys ends the old ones',
    fact: 'A device connects with its present primary and secondary key only.',
    run: async (fresh) => {
      const connectionString = await createDevice(fresh());
      const { responseBody: identity } = await registry.get(/DeviceId=([^;]*)/.exec(connectionString)[1]);
      const [primaryKey, secondaryKey] = [randomBytes(32), randomBytes(32)].map((key) => key.toString('base64'));
      await registry.update({ ...identity, authentication: { type: 'sas', symmetricKey: { primaryKey, secondaryKey } } });
      await assert.rejects(connect(connectionString), { name: 'UnauthorizedError' });
      for (const key of [primaryKey, secondaryKey]) {
        const client = await connect(`HostName=${hostName()};DeviceId=${identity.deviceId};SharedAccessKey=${key}`);
        await client.close();
      }
    },
  },
  {
    name: 'an update needs a device',
    fact: 'PUT with If-Match of an id that is not there is 404 DeviceNotFound.',
    run: async (fresh) => {
      const update = registry.update({ deviceId: fresh('nobody'), status: 'enabled' });
      await refused(update, 404, 'DeviceNotFoundError', 'ErrorCode:DeviceNotFound');
    },
  },
  {
    name: 'a deletion is 204 and final',
    fact: 'DELETE answers exactly 204; then the device is 404, and so is its twin.',
    run: async (fresh) => {
      const deviceId = fresh();
      await registry.create({ deviceId });
      const { httpResponse } = await registry.delete(deviceId);
      assert.equal(httpResponse.statusCode, 204);
      await refused(registry.get(deviceId), 404, 'DeviceNotFoundError', 'DeviceNotFound');
      await refused(registry.getTwin(deviceId), 404, 'DeviceNotFoundError', 'DeviceNotFound');
      await refused(registry.delete(deviceId), 404, 'DeviceNotFoundError', 'DeviceNotFound');
    },
  },
  {
    name: 'a device made anew is another one',
    fact: 'A deleted device that is created again has another generationId, other keys and a new twin.',
    run: async (fresh) => {
      const deviceId = fresh();
      const { responseBody: first } = await registry.create({ deviceId });
      await registry.updateTwin(deviceId, { tags: { a: 1 }, properties: { desired: { b: 2 } } }, '*');
      await registry.delete(deviceId);
      const { responseBody: second } = await registry.create({ deviceId });
      assert.notEqual(second.generationId, first.generationId);
      assert.notEqual(second.etag, first.etag);
      assert.notEqual(second.authentication.symmetricKey.primaryKey, first.authentication.symmetricKey.primaryKey);
      const { responseBody: twin } = await registry.getTwin(deviceId);
      assert.deepEqual([twin.tags ?? {}, twin.properties.desired.b], [{}, undefined]);
      assert.equal(twin.properties.desired.$version, 1);
    },
  },
  {
    name: 'an id may hold odd characters',
    fact: 'Ids hold - . + % _ # * ? ! ( ) , : = @ $ \' beside letters and digits; paths carry them percent-encoded.',
    run: async (fresh) => {
      const deviceId = `${fresh()}-.+%_#*?!(),:=@$'%41`;
      await registry.create({ deviceId });
      assert.equal((await registry.get(deviceId)).responseBody.deviceId, deviceId);
      const { responseBody: twin } = await registry.updateTwin(deviceId, { tags: { odd: true } }, '*');
      assert.deepEqual([twin.deviceId, twin.tags], [deviceId, { odd: true }]);
      assert.equal((await registry.delete(deviceId)).httpResponse.statusCode, 204);
    },
  },
  {
    name: 'an id may not hold others',
    fact: 'A blank, a slash or a letter outside ASCII in an id is 400 ArgumentInvalid.',
    run: async (fresh) => {
      for (const odd of [' ', '/', '"', 'ü', '\\', '&']) {
        await refused(registry.create({ deviceId: fresh() + odd }), 400, 'ArgumentError', 'ArgumentInvalid');
      }
    },
  },
  {
    name: 'an id has a limit',
    fact: 'An id is at most 128 characters.',
    run: async (fresh) => {
      const deviceId = fresh().padEnd(128, 'x');
      assert.equal((await registry.create({ deviceId })).responseBody.deviceId, deviceId);
      await refused(registry.create({ deviceId: `${deviceId}y` }), 400, 'ArgumentError', 'ArgumentInvalid');
    },
  },
  {
    name: 'ids differ by case',
    fact: 'Device ids are case-sensitive.',
    run: async (fresh) => {
      const deviceId = fresh('Upper');
      await registry.create({ deviceId });
      await refused(registry.get(deviceId.toLowerCase()), 404, 'DeviceNotFoundError', 'DeviceNotFound');
      await registry.create({ deviceId: deviceId.toLowerCase() });
      assert.equal((await registry.get(deviceId)).responseBody.deviceId, deviceId);
    },
  },
  {
    name: 'the list has the devices',
    fact: 'GET /devices/ is an array of identities.',
    run: async (fresh) => {
      const deviceIds = [fresh(), fresh(), fresh()];
      for (const deviceId of deviceIds) await registry.create({ deviceId });
      const { responseBody: all } = await registry.list();
      const found = all.filter((identity) => deviceIds.includes(identity.deviceId));
      assert.deepEqual(found.map((identity) => identity.deviceId).sort(), deviceIds);
      assert.ok(found.every((identity) => identity.authentication.symmetricKey.primaryKey));
    },
  },
  {
    name: 'a connected device is shown so',
    fact: 'connectionState is Connected while the device is, and lastActivityTime is a time then.',
    run: async (fresh) => {
      const deviceId = fresh();
      const client = await connect(await createDevice(deviceId));
      const { responseBody: connected } = await registry.get(deviceId);
      assert.equal(connected.connectionState, 'Connected');
      assert.ok(Math.abs(Date.parse(connected.lastActivityTime) - Date.now()) < 60_000, connected.lastActivityTime);
      await client.close();
      await until('it is shown as gone', async () => {
        return (await registry.get(deviceId)).responseBody.connectionState === 'Disconnected';
      });
    },
  },
  {
    name: 'statistics count devices',
    fact: 'GET /statistics/devices counts all, enabled and disabled devices.',
    alone: true,
    run: async (fresh) => {
      const count = async () => (await registry.getRegistryStatistics()).responseBody;
      const before = await count();
      await registry.create({ deviceId: fresh() });
      await registry.create({ deviceId: fresh(), status: 'disabled' });
      assert.deepEqual(await count(), {
        totalDeviceCount: before.totalDeviceCount + 2,
        enabledDeviceCount: before.enabledDeviceCount + 1,
        disabledDeviceCount: before.disabledDeviceCount + 1,
      });
    },
  },
]);
