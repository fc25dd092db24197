'use strict';
// MQTT by WebSocket on port 443, by azure-iot-device's MqttWs.

const { randomBytes } = require('node:crypto');
const { NoRetry } = require('azure-iot-common');
const { Client, Message, SharedAccessKeyAuthenticationProvider } = require('azure-iot-device');
const { MqttWs } = require('azure-iot-device-mqtt');
const { setTimeout: pause } = require('node:timers/promises');
const { assert, connect, createDevice, event, latch, onMethod, registry, service, until } = require('../support');
const { suite } = require('./suite');

async function open(client) {
  client.on('error', (error) => console.error('device client:', error.message));
  await client.open();
  return client;
}

function connectWs(connectionString) {
  return open(Client.fromConnectionString(connectionString, MqttWs));
}

async function device(fresh) {
  const deviceId = fresh();
  const connectionString = await createDevice(deviceId);
  return { deviceId, connectionString, client: await connectWs(connectionString) };
}

function report(twin, patch) {
  return new Promise((resolve, reject) => {
    twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
  });
}

async function telemetry(deviceId, count) {
  return until('the telemetry is shown', async () => {
    const lines = await latch('events', '--device', deviceId, '--kind', 'telemetry', '--json');
    const messages = lines.split('\n').filter(Boolean).map(JSON.parse);
    return messages.length >= count && messages;
  });
}

suite([
  {
    name: 'a device connects by WebSocket',
    fact: 'MQTT comes to wss://host:443/$iothub/websocket with the subprotocol mqtt, beside the REST API.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      assert.equal((await registry.get(deviceId)).responseBody.connectionState, 'Connected');
      await client.close();
      await until('it is shown as gone', async () => {
        return (await registry.get(deviceId)).responseBody.connectionState === 'Disconnected';
      });
    },
  },
  {
    name: 'twins go by WebSocket',
    fact: 'Reading, reporting and notices are as over port 8883.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      const twin = await client.getTwin();
      const seen = [];
      twin.on('properties.desired', (delta) => seen.push({ ...delta }));
      await twin.get();
      seen.length = 0;
      await report(twin, { a: { b: 1 } });
      await registry.updateTwin(deviceId, { properties: { desired: { c: 2 } } }, '*');
      await until('the change arrives', () => seen.length > 0);
      assert.deepEqual(seen, [{ c: 2, $version: 2 }]);
      assert.deepEqual((await registry.getTwin(deviceId)).responseBody.properties.reported.a, { b: 1 });
      await client.close();
    },
  },
  {
    name: 'methods go by WebSocket',
    fact: 'A call reaches a device by WebSocket, with payloads up to 128 KiB both ways.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      await onMethod(client, 'echo', (request) => ({ status: 200, payload: request.payload }));
      for (const payload of [{ a: 1 }, 'x'.repeat(128 * 1024 - 2)]) {
        const method = { methodName: 'echo', payload, responseTimeoutInSeconds: 20 };
        assert.deepEqual((await service.invokeDeviceMethod(deviceId, method)).result, { status: 200, payload });
      }
      await client.close();
    },
  },
  {
    name: 'messages go by WebSocket',
    fact: 'Telemetry and cloud-to-device messages are as over port 8883, each once and in order.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      const received = [];
      client.on('message', (message) => received.push(message.getData().toString()));
      await latch('message', 'send', deviceId, 'down', '--wait');
      assert.deepEqual(received, ['down']);
      for (const size of [1, 126, 65_535, 65_536, 200_000]) await client.sendEvent(new Message('x'.repeat(size)));
      const messages = await telemetry(deviceId, 5);
      assert.deepEqual(messages.map((message) => message.body.length), [1, 126, 65_535, 65_536, 200_000]);
      await client.close();
    },
  },
  {
    name: 'a wrong key by WebSocket',
    fact: 'A refused device gets CONNACK 5 by WebSocket, too.',
    run: async (fresh) => {
      const connectionString = await createDevice(fresh());
      const key = /SharedAccessKey=(.*)$/.exec(connectionString)[1];
      const wrong = connectionString.replace(key, randomBytes(32).toString('base64'));
      const refusal = { name: 'UnauthorizedError', message: /Connection refused: Not authorized/ };
      await assert.rejects(connectWs(wrong), refusal);
    },
  },
  {
    name: 'a device is disabled by WebSocket',
    fact: 'Disabling a device cuts its link, whichever way it came.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      client.setRetryPolicy(new NoRetry());
      const gone = event(client, 'disconnect');
      await registry.update({ deviceId, status: 'disabled' });
      await gone;
    },
  },
  {
    name: 'one session by both ways',
    fact: 'A device that changes from MQTT to WebSocket keeps its session, and the newer link drops the older.',
    run: async (fresh) => {
      const deviceId = fresh();
      const connectionString = await createDevice(deviceId);
      const first = await connect(connectionString);
      first.setRetryPolicy(new NoRetry());
      await onMethod(first, 'ping', () => ({ status: 200, payload: 'mqtt' }));
      const gone = event(first, 'disconnect');
      const second = await connectWs(connectionString);
      await gone;
      await onMethod(second, 'ping', () => ({ status: 200, payload: 'websocket' }));
      const method = { methodName: 'ping', responseTimeoutInSeconds: 20 };
      assert.equal((await service.invokeDeviceMethod(deviceId, method)).result.payload, 'websocket');
      await second.close();
    },
  },
  {
    name: 'a token renewed by the SDK, by WebSocket',
    fact: 'The SDK renews its token by a new connection; what it subscribed to goes on.',
    run: async (fresh) => {
      const deviceId = fresh();
      const connectionString = await createDevice(deviceId);
      const provider = SharedAccessKeyAuthenticationProvider.fromConnectionString(connectionString, 4, 2);
      const client = await open(Client.fromAuthenticationProvider(provider, MqttWs));
      await onMethod(client, 'ping', (request) => ({ status: 200, payload: request.payload }));
      // One renewal, and the end of the first token.
      for (const payload of [1, 2, 3]) {
        const method = { methodName: 'ping', payload, connectTimeoutInSeconds: 10, responseTimeoutInSeconds: 10 };
        assert.equal((await service.invokeDeviceMethod(deviceId, method)).result.payload, payload);
        await pause(1_700);
      }
      await client.close();
    },
  },
]);
