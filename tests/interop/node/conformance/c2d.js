'use strict';
// Cloud-to-device messages at a device of azure-iot-device over MQTT. The SDKs send them by AMQP only, so they are sent by
// `latch`.

const { Client } = require('azure-iot-device');
const { Mqtt, assert, createDevice, latch, registry, until } = require('../support');
const { suite } = require('./suite');

async function device(fresh) {
  const deviceId = fresh();
  return { deviceId, connectionString: await createDevice(deviceId) };
}

/** A connected client and what it gets. */
async function listen(connectionString) {
  const client = Client.fromConnectionString(connectionString, Mqtt);
  client.on('error', (error) => console.error('device client:', error.message));
  const messages = [];
  client.on('message', (message) => messages.push(message));
  await client.open();
  return { client, messages };
}

async function send(deviceId, body, ...options) {
  return JSON.parse(await latch('message', 'send', deviceId, body, ...options, '--json'));
}

async function waiting(deviceId) {
  return (await registry.getTwin(deviceId)).responseBody.cloudToDeviceMessageCount;
}

function bodies(messages) {
  return messages.map((message) => message.getData().toString());
}

/** Which messages of the device have ended, and how, in that order. */
async function feedback(deviceId) {
  const lines = (await latch('message', 'feedback', '--json')).split('\n').filter(Boolean).map(JSON.parse);
  return lines.filter((each) => each.deviceId === deviceId).map((each) => [each.originalMessageId, each.statusCode]);
}

suite([
  {
    name: 'system properties arrive',
    fact: 'The topic of a message carries $.mid, $.cid, $.uid, $.to, $.exp, $.ct and $.ce, and iothub-ack.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const { client, messages } = await listen(connectionString);
      await send(deviceId, '{}', '--message-id', 'm#1', '--correlation-id', 'c/1', '--user-id', 'ann', '--ack', 'full',
        '--content-type', 'application/json', '--content-encoding', 'utf-8', '--expiry', '600', '--wait');
      const [message] = messages;
      assert.deepEqual([message.messageId, message.correlationId, message.userId], ['m#1', 'c/1', 'ann']);
      assert.deepEqual([message.contentType, message.contentEncoding], ['application/json', 'utf-8']);
      assert.equal(message.to, `/devices/${deviceId}/messages/devicebound`);
      assert.ok(Math.abs(Date.parse(message.expiryTimeUtc) - Date.now() - 600_000) < 60_000, message.expiryTimeUtc);
      assert.equal(message.properties.getValue('iothub-ack'), 'full');
      await client.close();
    },
  },
  {
    name: 'properties hold any text',
    fact: 'Names and values of the bag are percent-encoded.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const { client, messages } = await listen(connectionString);
      const odd = [['a b', 'c d'], ['plus+', '#/&%?'], ['grün', 'é日本'], ['empty', '']];
      await send(deviceId, 'x', ...odd.flatMap(([name, value]) => ['--property', `${name}=${value}`]), '--wait');
      for (const [name, value] of odd) assert.equal(messages[0].properties.getValue(name), value, name);
      await client.close();
    },
  },
  {
    name: 'messages wait for a device that is away',
    fact: 'The queue of a device outlives its connection; its messages come in their order, each once.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      for (const body of ['a', 'b', 'c']) await send(deviceId, body);
      assert.equal(await waiting(deviceId), 3);
      const { client, messages } = await listen(connectionString);
      await until('all have ended', async () => (await waiting(deviceId)) === 0);
      assert.deepEqual(bodies(messages), ['a', 'b', 'c']);
      await client.close();
    },
  },
  {
    name: 'what is completed does not come again',
    fact: 'PUBACK completes a message.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const first = await listen(connectionString);
      await send(deviceId, 'once', '--wait');
      await first.client.close();
      const second = await listen(connectionString);
      await send(deviceId, 'next', '--wait');
      assert.deepEqual([bodies(first.messages), bodies(second.messages)], [['once'], ['next']]);
      await second.client.close();
    },
  },
  {
    name: 'the subscription outlives the connection',
    fact: 'With CleanSession 0 a device that comes back gets its messages before it subscribes again.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const first = await listen(connectionString);
      await send(deviceId, 'first', '--wait');
      await first.client.close();
      await send(deviceId, 'second', '--ack', 'full', '--message-id', 'second');
      const quiet = Client.fromConnectionString(connectionString, Mqtt);
      await quiet.open();
      await until('it has ended', async () => (await feedback(deviceId)).length === 1);
      assert.deepEqual(await feedback(deviceId), [['second', 'Success']]);
      await quiet.close();
    },
  },
  {
    name: 'fifty messages wait',
    fact: 'A queue holds 50 messages; one more is refused with 403004 DeviceMaximumQueueDepthExceeded.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const numbers = Array.from({ length: 50 }, (_, index) => String(index));
      for (const number of numbers) await send(deviceId, number);
      await assert.rejects(send(deviceId, 'one too many'), /DeviceMaximumQueueDepthExceeded|50/);
      const { client, messages } = await listen(connectionString);
      await until('all have ended', async () => (await waiting(deviceId)) === 0);
      assert.deepEqual(bodies(messages), numbers);
      await client.close();
    },
  },
  {
    name: 'a message expires',
    fact: 'A message whose time has passed is not sent; who asked for negative feedback gets Expired.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      await send(deviceId, 'stale', '--expiry', '1', '--ack', 'full', '--message-id', 'stale');
      await until('it has expired', async () => (await feedback(deviceId)).length === 1);
      assert.deepEqual(await feedback(deviceId), [['stale', 'Expired']]);
      const { client, messages } = await listen(connectionString);
      await send(deviceId, 'fresh', '--wait');
      assert.deepEqual(bodies(messages), ['fresh']);
      await client.close();
    },
  },
  {
    name: 'feedback is what was asked for',
    fact: 'iothub-ack none, positive, negative and full: a completed message gives feedback for positive and full.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const { client } = await listen(connectionString);
      for (const ack of ['none', 'positive', 'negative', 'full']) {
        await send(deviceId, ack, '--ack', ack, '--message-id', ack, '--wait');
      }
      assert.deepEqual(await feedback(deviceId), [['positive', 'Success'], ['full', 'Success']]);
      await client.close();
    },
  },
  {
    name: 'a message has 64 KiB',
    fact: 'The body of a cloud-to-device message is at most 64 KiB with its properties.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await device(fresh);
      const { client, messages } = await listen(connectionString);
      await send(deviceId, 'x'.repeat(60 * 1024), '--wait');
      assert.equal(messages[0].getData().length, 60 * 1024);
      await assert.rejects(send(deviceId, 'x'.repeat(64 * 1024 + 1)));
      await client.close();
    },
  },
  {
    name: 'an unknown device gets no message',
    fact: 'A message for a device that is not registered is refused with DeviceNotFound.',
    run: async (fresh) => assert.rejects(send(fresh('nobody'), 'x'), /no device|DeviceNotFound/),
  },
]);
