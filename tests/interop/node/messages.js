'use strict';
// Cloud-to-device messages at a device of the Node SDK: over MQTT, while it listens and while it is away, and over
// HTTPS, where it can also reject and abandon.

const { Client } = require('azure-iot-device');
const { Http } = require('azure-iot-device-http');
const { Mqtt, assert, createDevice, latch, main, registry, until } = require('./support');

main(async () => {
  await overMqtt();
  await overHttps();
});

async function overMqtt() {
  const connectionString = await createDevice('listener');
  const first = listen(connectionString);
  await first.client.open();
  // The command returns once the hub has the device's acknowledgement.
  const options = ['--message-id', 'm1', '--correlation-id', 'c1', '--property', 'colour=dark red', '--ack', 'full'];
  const answer = await send('listener', '{"open":true}', ...options, '--content-type', 'application/json', '--wait');
  assert.equal(answer.statusCode, 'Success');
  const [message] = first.messages;
  assert.equal(message.messageId, 'm1');
  assert.equal(message.correlationId, 'c1');
  assert.equal(message.contentType, 'application/json');
  assert.equal(message.to, '/devices/listener/messages/devicebound');
  assert.equal(message.properties.getValue('colour'), 'dark red');
  assert.deepEqual(JSON.parse(message.getData().toString()), { open: true });
  assert.deepEqual(await feedback('listener'), [['m1', 'Success']]);
  await first.client.close();

  for (const body of ['a', 'b', 'c']) await send('listener', body, '--ack', 'full', '--message-id', body);
  assert.equal((await registry.get('listener')).responseBody.cloudToDeviceMessageCount, 3);
  const second = listen(connectionString);
  await second.client.open();
  await until('the messages from meanwhile', async () => (await feedback('listener')).length === 4);
  assert.deepEqual(second.messages.map((each) => each.getData().toString()), ['a', 'b', 'c']);
  assert.equal((await registry.get('listener')).responseBody.cloudToDeviceMessageCount, 0);
  await second.client.close();
}

/** A client that completes whatever comes; the listener makes the SDK subscribe. */
function listen(connectionString) {
  const client = Client.fromConnectionString(connectionString, Mqtt);
  client.on('error', (error) => console.error('device client:', error.message));
  const messages = [];
  const complete = (message) => {
    messages.push(message);
    client.complete(message, (error) => assert.ifError(error));
  };
  client.on('message', complete);
  return { client, messages };
}

async function overHttps() {
  const client = Client.fromConnectionString(await createDevice('poller'), Http);
  await client.setOptions({ http: { receivePolicy: { interval: 1 } } });
  for (const body of ['complete', 'reject', 'abandon']) {
    await send('poller', body, '--ack', 'full', '--message-id', body, '--property', 'a=1');
  }
  const seen = [];
  client.on('message', (message) => {
    const body = message.getData().toString();
    seen.push(body);
    assert.equal(message.messageId, body);
    // The SDK leaves the header's name as it is.
    assert.equal(message.properties.getValue('iothub-app-a'), '1');
    // What was abandoned comes again, until it was abandoned too often.
    client[body](message, (error) => assert.ifError(error));
  });
  await until('all have ended', async () => (await feedback('poller')).length === 3, 60_000);
  const ended = (await feedback('poller')).sort();
  assert.deepEqual(ended, [['abandon', 'DeliveryCountExceeded'], ['complete', 'Success'], ['reject', 'Rejected']]);
  assert.equal(seen.filter((body) => body === 'abandon').length, 10);
  assert.equal(seen.length, 12);
}

async function send(deviceId, body, ...options) {
  return JSON.parse(await latch('message', 'send', deviceId, body, ...options, '--json'));
}

/** Which messages of the device have ended, and how, in that order. */
async function feedback(deviceId) {
  const lines = (await latch('message', 'feedback', '--json')).split('\n').filter(Boolean).map(JSON.parse);
  const records = lines.filter((record) => record.deviceId === deviceId);
  return records.map((record) => [record.originalMessageId, record.statusCode]);
}
