'use strict';
// Who may connect by azure-iot-device over MQTT, and what ends a connection.

const { randomBytes } = require('node:crypto');
const { setTimeout: pause } = require('node:timers/promises');
const { Client, SharedAccessKeyAuthenticationProvider } = require('azure-iot-device');
const { NoRetry } = require('azure-iot-common');
const {
  Mqtt,
  assert,
  connect,
  connectByToken,
  createDevice,
  event,
  hostName,
  iothub,
  latch,
  onMethod,
  registry,
  service,
  serviceString,
  token,
  until,
} = require('../support');
const { suite } = require('./suite');

/** CONNACK 5, as the SDK tells it. */
const REFUSED = { name: 'UnauthorizedError', message: /Connection refused: Not authorized/ };

async function device(fresh) {
  const deviceId = fresh();
  const connectionString = await createDevice(deviceId);
  const { primaryKey, secondaryKey } = (await registry.get(deviceId)).responseBody.authentication.symmetricKey;
  return { deviceId, connectionString, primaryKey, secondaryKey, resource: `${hostName()}/devices/${deviceId}` };
}

async function state(deviceId) {
  return (await registry.get(deviceId)).responseBody.connectionState;
}

/** Whether the device is connected now: its twin is answered. */
async function works(client) {
  assert.ok((await client.getTwin()).properties.desired.$version >= 1);
}

/** A client whose token ends soon and is renewed before. */
async function renewing(connectionString, valid, margin) {
  const provider = SharedAccessKeyAuthenticationProvider.fromConnectionString(connectionString, valid, margin);
  const client = Client.fromAuthenticationProvider(provider, Mqtt);
  client.on('error', (error) => console.error('device client:', error.message));
  await client.open();
  return client;
}

suite([
  {
    name: 'a token of the primary key',
    fact: 'A device connects by a token signed with its primary key, for host/devices/{id}.',
    run: async (fresh) => {
      const { resource, primaryKey } = await device(fresh);
      const client = await connectByToken(token(resource, primaryKey, 60));
      await works(client);
      await client.close();
    },
  },
  {
    name: 'a token of the secondary key',
    fact: 'The secondary key is as good as the primary.',
    run: async (fresh) => {
      const { resource, secondaryKey } = await device(fresh);
      const client = await connectByToken(token(resource, secondaryKey, 60));
      await works(client);
      await client.close();
    },
  },
  {
    name: 'a token of a policy',
    fact: 'A token with skn of a policy that has DeviceConnect, signed with its key, lets a registered device in.',
    run: async (fresh) => {
      const { resource } = await device(fresh);
      const { SharedAccessKey: key, SharedAccessKeyName: policy } = iothub.ConnectionString.parse(serviceString);
      const client = await connectByToken(token(resource, key, 60, policy));
      await works(client);
      await client.close();
      const unknown = `${hostName()}/devices/${fresh('nobody')}`;
      await assert.rejects(connectByToken(token(unknown, key, 60, policy)), REFUSED);
    },
  },
  {
    name: 'a wrong key',
    fact: 'A token with a wrong signature is CONNACK 5.',
    run: async (fresh) => {
      const { resource } = await device(fresh);
      await assert.rejects(connectByToken(token(resource, randomBytes(32).toString('base64'), 60)), REFUSED);
    },
  },
  {
    name: 'a key of another device',
    fact: 'A device’s key opens no other device’s door.',
    run: async (fresh) => {
      const [one, other] = [await device(fresh), await device(fresh)];
      await assert.rejects(connectByToken(token(one.resource, other.primaryKey, 60)), REFUSED);
    },
  },
  {
    name: 'a key of an unknown policy',
    fact: 'A token whose skn names no policy of the hub is CONNACK 5.',
    run: async (fresh) => {
      const { resource, primaryKey } = await device(fresh);
      await assert.rejects(connectByToken(token(resource, primaryKey, 60, 'nopolicy')), REFUSED);
    },
  },
  {
    name: 'a token of the past',
    fact: 'An expired token is CONNACK 5.',
    run: async (fresh) => {
      const { resource, primaryKey } = await device(fresh);
      await assert.rejects(connectByToken(token(resource, primaryKey, -60)), REFUSED);
    },
  },
  {
    name: 'an unknown device',
    fact: 'A device that is not registered is CONNACK 5.',
    run: async (fresh) => {
      const { connectionString, deviceId } = await device(fresh);
      await assert.rejects(connect(connectionString.replace(deviceId, fresh('nobody'))), REFUSED);
    },
  },
  {
    name: 'a disabled device',
    fact: 'A disabled device is refused, and let in again once it is enabled.',
    run: async (fresh) => {
      const { connectionString, deviceId } = await device(fresh);
      await registry.update({ deviceId, status: 'disabled' });
      await assert.rejects(connect(connectionString), { name: 'UnauthorizedError' });
      await registry.update({ deviceId, status: 'enabled' });
      await (await connect(connectionString)).close();
    },
  },
  {
    name: 'a device with an odd id',
    fact: 'Ids go into topics and client ids as they are, percent signs and wildcards included.',
    run: async (fresh) => {
      const deviceId = `${fresh()}-.%_*!(),:=@'`;
      const client = await connect(await createDevice(deviceId));
      await works(client);
      const messages = [];
      client.on('message', (message) => messages.push(message.getData().toString()));
      await latch('message', 'send', deviceId, 'hello', '--wait');
      assert.deepEqual(messages, ['hello']);
      await client.sendEvent(new (require('azure-iot-device').Message)('x'));
      await client.close();
    },
  },
  {
    name: 'a token ends under a connection',
    fact: 'The hub cuts a link whose token has expired.',
    run: async (fresh) => {
      const { deviceId, resource, primaryKey } = await device(fresh);
      const client = await connectByToken(token(resource, primaryKey, 2));
      client.setRetryPolicy(new NoRetry());
      await event(client, 'disconnect');
      await until('the hub shows it', async () => (await state(deviceId)) === 'Disconnected');
    },
  },
  {
    name: 'a device is disabled under a connection',
    fact: 'Disabling a device cuts its link.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const client = await connect(connectionString);
      client.setRetryPolicy(new NoRetry());
      const gone = event(client, 'disconnect');
      await registry.update({ deviceId, status: 'disabled' });
      await gone;
      assert.equal(await state(deviceId), 'Disconnected');
    },
  },
  {
    name: 'a device is deleted under a connection',
    fact: 'Deleting a device cuts its link.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const client = await connect(connectionString);
      client.setRetryPolicy(new NoRetry());
      const gone = event(client, 'disconnect');
      await registry.delete(deviceId);
      await gone;
      await assert.rejects(connect(connectionString), REFUSED);
    },
  },
  {
    name: 'a device connects twice',
    fact: 'The newer connection of a device drops the older one, and the device stays Connected.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const first = await connect(connectionString);
      first.setRetryPolicy(new NoRetry());
      const gone = event(first, 'disconnect');
      const second = await connect(connectionString);
      await gone;
      assert.equal(await state(deviceId), 'Connected');
      await works(second);
      await second.close();
    },
  },
  {
    name: 'a token renewed by the application',
    fact: 'updateSharedAccessSignature reconnects with the new token, and the old one’s end no longer counts.',
    run: async (fresh) => {
      const { deviceId, resource, primaryKey } = await device(fresh);
      const client = await connectByToken(token(resource, primaryKey, 3));
      await onMethod(client, 'ping', () => ({ status: 200, payload: 'pong' }));
      await new Promise((resolve, reject) => {
        const done = (error) => (error ? reject(error) : resolve());
        client.updateSharedAccessSignature(token(resource, primaryKey, 60), done);
      });
      await pause(3_500);
      const call = { methodName: 'ping', connectTimeoutInSeconds: 5, responseTimeoutInSeconds: 10 };
      assert.equal((await service.invokeDeviceMethod(deviceId, call)).result.payload, 'pong');
      await client.close();
    },
  },
  {
    name: 'a token renewed by the SDK',
    fact: 'The SDK renews its token by reconnecting without subscribing: methods, notices and messages go on, each once.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const client = await renewing(connectionString, 4, 2);
      await onMethod(client, 'ping', (request) => ({ status: 200, payload: request.payload }));
      const twin = await client.getTwin();
      const steps = [];
      twin.on('properties.desired', (delta) => delta.step && steps.push([delta.step, delta.$version]));
      const messages = [];
      client.on('message', (message) => messages.push(message.getData().toString()));
      await twin.get();
      const wanted = [];
      // Two renewals and more.
      for (let step = 1; step <= 8; step += 1) {
        await registry.updateTwin(deviceId, { properties: { desired: { step } } }, '*');
        await latch('message', 'send', deviceId, String(step), '--wait');
        const call = { methodName: 'ping', payload: step, connectTimeoutInSeconds: 10, responseTimeoutInSeconds: 10 };
        assert.equal((await service.invokeDeviceMethod(deviceId, call)).result.payload, step);
        wanted.push(step);
        await pause(700);
      }
      assert.deepEqual(messages, wanted.map(String));
      // What changed in the moment of a reconnect is in the twin and not sent again.
      const versions = steps.map(([, version]) => version);
      assert.deepEqual(versions, [...new Set(versions)].sort((a, b) => a - b), 'each once and in order');
      assert.equal((await client.getTwin()).properties.desired.step, 8);
      await client.close();
    },
  },
]);
