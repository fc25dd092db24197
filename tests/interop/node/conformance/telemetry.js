'use strict';
// Device-to-cloud messages by azure-iot-device over MQTT, and what the hub reads in them.

const { assert, connect, createDevice, device, latch, registry, until } = require('../support');
const { suite } = require('./suite');

async function connected(fresh) {
  const deviceId = fresh();
  return { deviceId, client: await connect(await createDevice(deviceId)) };
}

/** A message with that body and those members. */
function message(body, members = {}, properties = {}) {
  const made = Object.assign(new device.Message(body), members);
  for (const [name, value] of Object.entries(properties)) made.properties.add(name, value);
  return made;
}

/** The device's messages as the hub has them, in their order. */
async function received(deviceId) {
  const lines = await latch('events', '--device', deviceId, '--kind', 'telemetry', '--json');
  return lines.split('\n').filter(Boolean).map(JSON.parse);
}

/** The same, once there are so many: a message is shown a little after its PUBACK. */
function shown(deviceId, count) {
  return until('the telemetry is shown', async () => {
    const messages = await received(deviceId);
    return messages.length >= count && messages;
  });
}

/** Sends one message; gives it as the hub has it. */
async function through(fresh, ...parts) {
  const { deviceId, client } = await connected(fresh);
  await client.sendEvent(message(...parts));
  await client.close();
  const messages = await shown(deviceId, 1);
  assert.equal(messages.length, 1);
  return messages[0];
}

suite([
  {
    name: 'system properties arrive',
    fact: '$.mid, $.cid, $.uid, $.ct and $.ce of the bag are message-id, correlation-id, user-id, content-type and content-encoding.',
    run: async (fresh) => {
      const members = { messageId: 'id 1', correlationId: 'c/1', userId: 'ann', contentType: 'application/json', contentEncoding: 'utf-8' };
      const { properties, systemProperties } = await through(fresh, '{}', members);
      assert.equal(systemProperties['message-id'], 'id 1');
      assert.equal(systemProperties['correlation-id'], 'c/1');
      assert.equal(systemProperties['user-id'], 'ann');
      assert.equal(systemProperties['content-type'], 'application/json');
      assert.equal(systemProperties['content-encoding'], 'utf-8');
      assert.deepEqual(properties, {});
    },
  },
  {
    name: 'the hub says who sent a message',
    fact: 'The hub stamps a message with its device, that device’s generation, how it proved itself, and when it came.',
    run: async (fresh) => {
      const start = Date.now();
      const { systemProperties, deviceId } = await through(fresh, 'x', {}, { 'iothub-connection-device-id': 'another' });
      assert.equal(systemProperties['iothub-connection-device-id'], deviceId);
      const { generationId } = (await registry.get(deviceId)).responseBody;
      assert.equal(systemProperties['iothub-connection-auth-generation-id'], generationId);
      const { scope, type, issuer } = JSON.parse(systemProperties['iothub-connection-auth-method']);
      assert.deepEqual([scope, type, issuer], ['device', 'sas', 'iothub']);
      const time = new Date(systemProperties['iothub-enqueuedtime']).getTime();
      assert.ok(Math.abs(time - start) < 60_000, systemProperties['iothub-enqueuedtime']);
    },
  },
  {
    name: 'properties hold any text',
    fact: 'Names and values of the bag are percent-encoded, names too.',
    run: async (fresh) => {
      const odd = {
        'a b': 'c d',
        'a&b=c': 'x&y=z',
        'plus+#hash': '+#?/',
        'per%cent': '100%25',
        'grün日本': 'é\u{1f6aa}',
        '(*!\')': "(*!')",
        empty: '',
      };
      const { properties } = await through(fresh, 'x', {}, odd);
      for (const [name, value] of Object.entries(odd)) assert.equal(properties[name], value, name);
    },
  },
  {
    name: 'a message without properties',
    fact: 'An empty bag is a message without properties of the device’s own.',
    run: async (fresh) => {
      const { properties, body } = await through(fresh, 'plain');
      assert.deepEqual(properties, {});
      assert.equal(body, 'plain');
    },
  },
  {
    name: 'a body is any bytes',
    fact: 'The hub passes a body on as it is, text or not, empty or not.',
    run: async (fresh) => {
      const { deviceId, client } = await connected(fresh);
      const bytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index));
      await client.sendEvent(message(bytes));
      await client.sendEvent(message('{"temperature":21.5}'));
      await client.close();
      const [binary, json] = await shown(deviceId, 2);
      assert.deepEqual(Buffer.from(binary.bodyBase64, 'base64'), bytes);
      assert.deepEqual(json.body, { temperature: 21.5 });
    },
  },
  {
    name: 'messages keep their order',
    fact: 'The messages of a device reach the hub in the order in which it sent them, each once.',
    run: async (fresh) => {
      const { deviceId, client } = await connected(fresh);
      const numbers = Array.from({ length: 50 }, (_, index) => index);
      await Promise.all(numbers.map((number) => client.sendEvent(message(String(number)))));
      await client.close();
      assert.deepEqual((await shown(deviceId, 50)).map((each) => Number(each.body)), numbers);
    },
  },
  {
    name: 'a message has 256 KiB',
    fact: 'Body, values of system properties, and names and values of the others are at most 262144 bytes together.',
    run: async (fresh) => {
      const { deviceId, client } = await connected(fresh);
      const properties = { name: 'v'.repeat(96) };
      await client.sendEvent(message('x'.repeat(262_144 - 100), {}, properties));
      await client.close();
      const [{ body }] = await shown(deviceId, 1);
      assert.equal(body.length, 262_144 - 100);
    },
  },
  {
    name: 'a larger message ends the connection',
    fact: 'A message over 262144 bytes is not taken: over MQTT the connection ends (choice).',
    run: async (fresh) => {
      const { deviceId, client } = await connected(fresh);
      const gone = new Promise((resolve) => client.on('disconnect', resolve));
      client.setRetryPolicy(new (require('azure-iot-common').NoRetry)());
      const sent = client.sendEvent(message('x'.repeat(262_144 - 99), {}, { name: 'v'.repeat(96) }));
      await Promise.race([gone, sent.then(() => gone)]);
      sent.catch(() => {});
      assert.deepEqual(await received(deviceId), []);
    },
  },
  {
    name: 'the time of an event is a property',
    fact: 'iothub-creation-time-utc is the device’s to set, and is passed on.',
    run: async (fresh) => {
      const time = '2026-11-24T08:40:04.171Z';
      const { systemProperties } = await through(fresh, 'x', {}, { 'iothub-creation-time-utc': time });
      assert.equal(systemProperties['iothub-creation-time-utc'], time);
    },
  },
]);
