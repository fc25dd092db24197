'use strict';
// The wire between a device and the hub is cut: during a method, while messages are sent, while its twin is changed. The
// hub listens on another port, and this script is the wire from the port that the SDK knows.

const net = require('node:net');
const { Message } = require('azure-iot-device');
const { assert, connect, createDevice, event, latch, main, onMethod, registry, service, until } = require('./support');

const SDKS_PORT = 8883;
const HUBS_PORT = 18883;

class Wire {
  constructor() {
    this.ends = new Set();
    this.isCut = false;
    this.server = net.createServer((device) => this.join(device));
  }

  listen() {
    return new Promise((resolve) => this.server.listen(SDKS_PORT, '127.0.0.1', resolve));
  }

  join(device) {
    if (this.isCut) return device.destroy();
    const hub = net.connect(HUBS_PORT, '127.0.0.1');
    for (const [end, other] of [[device, hub], [hub, device]]) {
      this.ends.add(end);
      end.on('error', () => {});
      end.on('close', () => {
        this.ends.delete(end);
        other.destroy();
      });
      end.pipe(other);
    }
  }

  cut() {
    this.isCut = true;
    for (const end of this.ends) end.destroy();
  }

  mend() {
    this.isCut = false;
  }
}

const wire = new Wire();

main(async () => {
  await wire.listen();
  await duringMethod();
  await duringTelemetry();
  await duringChange();
});

/** The caller hears of it at once, and the device is not called again. */
async function duringMethod() {
  const client = await connect(await createDevice('called'));
  let calls = 0;
  const begun = new Promise((resolve) => {
    client.onDeviceMethod('hold', () => {
      calls += 1;
      resolve();
    });
  });
  await onMethod(client, 'ping', () => ({ status: 200, payload: 'pong' }));
  const call = service.invokeDeviceMethod('called', { methodName: 'hold', responseTimeoutInSeconds: 60 });
  const refused = assert.rejects(call, { message: 'Not found', responseBody: /404104/ });
  await begun;
  const back = event(client, 'connect', 60_000);
  wire.cut();
  await refused;
  wire.mend();
  await back;
  const ping = { methodName: 'ping', connectTimeoutInSeconds: 20, responseTimeoutInSeconds: 20 };
  assert.equal((await service.invokeDeviceMethod('called', ping)).result.payload, 'pong');
  assert.equal(calls, 1);
  await client.close();
}

/** What is sent meanwhile arrives, as the SDK tries again; so does what was sent to the device. */
async function duringTelemetry() {
  const client = await connect(await createDevice('sender'));
  const received = [];
  client.on('message', (message) => received.push(message.getData().toString()));
  await latch('message', 'send', 'sender', 'before', '--wait');
  const numbers = Array.from({ length: 20 }, (_, index) => index);
  const sent = numbers.slice(0, 10).map((number) => client.sendEvent(new Message(String(number))));
  const back = event(client, 'connect', 60_000);
  wire.cut();
  await latch('message', 'send', 'sender', 'meanwhile');
  sent.push(...numbers.slice(10).map((number) => client.sendEvent(new Message(String(number)))));
  wire.mend();
  await back;
  await Promise.all(sent);
  await until('all messages are there', async () => {
    const lines = (await latch('events', '--device', 'sender', '--kind', 'telemetry', '--json')).split('\n');
    const seen = new Set(lines.filter(Boolean).map((line) => Number(JSON.parse(line).body)));
    return numbers.every((number) => seen.has(number));
  });
  await until('the message from meanwhile arrives', () => received.includes('meanwhile'));
  assert.deepEqual(received, ['before', 'meanwhile'], 'each once');
  await client.close();
}

/** A change from meanwhile is in the twin and is no notice; the next one is a notice, once. */
async function duringChange() {
  const client = await connect(await createDevice('changed'));
  const twin = await client.getTwin();
  const notices = [];
  twin.on('properties.desired', (delta) => notices.push({ ...delta }));
  await twin.get();
  notices.length = 0;
  const desire = (desired) => registry.updateTwin('changed', { properties: { desired } }, '*');
  const back = event(client, 'connect', 60_000);
  wire.cut();
  await until('the hub has noticed', async () => {
    return (await registry.get('changed')).responseBody.connectionState === 'Disconnected';
  });
  await desire({ meanwhile: true });
  wire.mend();
  await back;
  await desire({ after: true });
  await until('the change arrives', () => notices.length > 0);
  assert.deepEqual(notices, [{ after: true, $version: 3 }]);
  await twin.get();
  assert.equal(twin.properties.desired.meanwhile, true);
  await client.close();
}
