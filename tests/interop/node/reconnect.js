'use strict';
// The hub is killed and comes back: the SDK reconnects and, by itself, subscribes to its twin no more. Then a second
// connection of one device takes the place of the first.

const readline = require('node:readline');
const { NoRetry } = require('azure-iot-common');
const { assert, connect, createDevice, event, latch, main, onMethod, registry, service, until } = require('./support');

main(async () => {
  await survive();
  await takeOver();
});

async function survive() {
  const client = await connect(await createDevice('survivor'));
  await onMethod(client, 'ping', () => ({ status: 200, payload: 'pong' }));
  const twin = await client.getTwin();
  const deltas = [];
  twin.on('properties.desired', (delta) => deltas.push({ ...delta }));
  await twin.get();
  await registry.updateTwin('survivor', { properties: { desired: { step: 'before' } } }, '*');
  await until('the first change arrives', () => deltas.some((delta) => delta.step === 'before'));

  const messages = [];
  client.on('message', (message) => messages.push(message.getData().toString()));
  await latch('message', 'send', 'survivor', 'before', '--wait');

  const back = event(client, 'connect', 60_000);
  console.log('kill the hub');
  await event(readline.createInterface({ input: process.stdin }), 'line', 60_000);
  await back;
  await registry.updateTwin('survivor', { properties: { desired: { step: 'after' } } }, '*');
  await until('the second change arrives', () => deltas.some((delta) => delta.step === 'after'));
  await latch('message', 'send', 'survivor', 'after', '--wait');
  assert.deepEqual(messages, ['before', 'after']);
  const { result } = await service.invokeDeviceMethod('survivor', { methodName: 'ping', connectTimeoutInSeconds: 10 });
  assert.deepEqual(result, { status: 200, payload: 'pong' });
  const { responseBody: kept } = await registry.getTwin('survivor');
  assert.deepEqual(kept.properties.desired.step, 'after');
  await client.close();
}

async function takeOver() {
  const connectionString = await createDevice('twice');
  const first = await connect(connectionString);
  // Otherwise the two would take the place of each other for ever.
  first.setRetryPolicy(new NoRetry());
  await onMethod(first, 'which', () => ({ status: 200, payload: 'first' }));
  const gone = event(first, 'disconnect');
  const second = await connect(connectionString);
  await onMethod(second, 'which', () => ({ status: 200, payload: 'second' }));
  await gone;
  const { result } = await service.invokeDeviceMethod('twice', { methodName: 'which' });
  assert.equal(result.payload, 'second');
  const { responseBody: twin } = await registry.getTwin('twice');
  assert.equal(twin.connectionState, 'Connected');
  await second.close();
}
