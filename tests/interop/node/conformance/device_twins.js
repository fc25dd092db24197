'use strict';
// Twins as a device sees and changes them, by azure-iot-device over MQTT.

const { Client } = require('azure-iot-device');
const { Mqtt, assert, connect, createDevice, query, registry, until } = require('../support');
const { suite } = require('./suite');

async function device(fresh) {
  const deviceId = fresh();
  const connectionString = await createDevice(deviceId);
  const client = await connect(connectionString);
  const twin = await client.getTwin();
  return { deviceId, connectionString, client, twin };
}

function report(twin, patch) {
  return new Promise((resolve, reject) => {
    twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
  });
}

/** Collects what a listener gets, and waits until it gets notices. */
async function notices(twin, path = 'properties.desired') {
  const seen = [];
  twin.on(path, (delta) => seen.push(JSON.parse(JSON.stringify(delta))));
  // The SDK subscribes in the background; the answer to this comes after the hub's to that.
  await twin.get();
  seen.length = 0;
  return seen;
}

async function desire(deviceId, desired) {
  const { responseBody } = await registry.updateTwin(deviceId, { properties: { desired } }, '*');
  return responseBody.properties.desired.$version;
}

async function reportedOf(deviceId) {
  return (await registry.getTwin(deviceId)).responseBody.properties.reported;
}

suite([
  {
    name: 'a device gets its sections with their versions',
    fact: 'A twin GET answers desired and reported with $version each: no tags, no $metadata, no wrapper.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      await registry.updateTwin(deviceId, { tags: { secret: 1 }, properties: { desired: { a: { b: 1 } } } }, '*');
      await twin.get();
      const { desired, reported } = JSON.parse(JSON.stringify(twin.properties));
      assert.deepEqual(desired, { a: { b: 1 }, $version: 2 });
      assert.deepEqual(reported, { $version: 1 });
      assert.ok(!('tags' in twin));
      await client.close();
    },
  },
  {
    name: 'reports merge',
    fact: 'A reported patch merges at every level, null removes, and each adds one to $version.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      await report(twin, { fw: { version: '1', slot: 'a' }, passing: true });
      await report(twin, { fw: { version: '2' }, passing: null });
      const { $metadata, ...reported } = await reportedOf(deviceId);
      assert.deepEqual(reported, { fw: { version: '2', slot: 'a' }, $version: 3 });
      assert.ok(!('passing' in $metadata));
      await client.close();
    },
  },
  {
    name: 'reports are stamped with times only',
    fact: '$metadata of reported properties has $lastUpdated for each value and no $lastUpdatedVersion.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      await report(twin, { fw: { version: '1' } });
      const { $metadata } = await reportedOf(deviceId);
      for (const metadata of [$metadata, $metadata.fw, $metadata.fw.version]) {
        assert.ok(Number.isFinite(Date.parse(metadata.$lastUpdated)));
        assert.ok(!('$lastUpdatedVersion' in metadata));
      }
      await client.close();
    },
  },
  {
    name: 'a wrong report is refused with its reason',
    fact: 'A reported patch with a bad key, an integer out of range or too deep gets an error with a message, and changes nothing.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      let deep = 1;
      for (let level = 0; level < 12; level += 1) deep = { a: deep };
      for (const wrong of [{ 'a.b': 1 }, { $a: 1 }, { n: 4503599627370496 }, { text: 'x'.repeat(4097) }, deep]) {
        await assert.rejects(report(twin, wrong), (error) => error.message.length > 10);
      }
      assert.equal((await reportedOf(deviceId)).$version, 1);
      await report(twin, { good: true });
      await client.close();
    },
  },
  {
    name: 'reported properties have 32 KiB',
    fact: 'Reported properties hold 32 KiB, counted after the merge.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      await report(twin, Object.fromEntries([...'abcdefgh'].map((key) => [key, 'x'.repeat(4095)])));
      await assert.rejects(report(twin, { i: 1 }));
      await report(twin, { a: null, i: 1 });
      const reported = await reportedOf(deviceId);
      assert.deepEqual([reported.i, 'a' in reported, reported.$version], [1, false, 3]);
      await client.close();
    },
  },
  {
    name: 'reports beside each other are all answered',
    fact: 'Each reported patch gets an answer of its own, and all are merged.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      const names = Array.from({ length: 30 }, (_, index) => `n${index}`);
      await Promise.all(names.map((name) => report(twin, { [name]: true })));
      const reported = await reportedOf(deviceId);
      assert.ok(names.every((name) => reported[name]));
      assert.equal(reported.$version, 31);
      await client.close();
    },
  },
  {
    name: 'reports outlive the connection',
    fact: 'Reported properties are the hub’s to keep: a device that comes back finds them.',
    run: async (fresh) => {
      const { connectionString, client, twin } = await device(fresh);
      await report(twin, { count: 7 });
      await client.close();
      const again = await connect(connectionString);
      assert.equal((await again.getTwin()).properties.reported.count, 7);
      await again.close();
    },
  },
  {
    name: 'a listener begins with what there is',
    fact: 'The SDK gives a new listener the whole section once; the hub sends nothing for a subscription.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      await desire(deviceId, { a: 1 });
      await twin.get();
      const seen = [];
      twin.on('properties.desired', (delta) => seen.push({ ...delta }));
      // The SDK subscribes in the background; the answer to this comes after the hub's to that.
      await report(twin, { ready: true });
      await desire(deviceId, { b: 2 });
      await until('the change arrives', () => seen.some((delta) => delta.b === 2));
      assert.deepEqual(seen, [{ a: 1, $version: 2 }, { b: 2, $version: 3 }]);
      await client.close();
    },
  },
  {
    name: 'notices come in order, each once',
    fact: 'A device gets every change of desired properties as one patch, with $version in its body, in their order.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      const seen = await notices(twin);
      for (let step = 1; step <= 20; step += 1) await desire(deviceId, { step });
      await until('the last arrives', () => seen.length >= 20);
      assert.deepEqual(seen, Array.from({ length: 20 }, (_, index) => ({ step: index + 1, $version: index + 2 })));
      await client.close();
    },
  },
  {
    name: 'a notice is the patch',
    fact: 'A notice holds what the back end sent, nulls included, and nothing else.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      await desire(deviceId, { a: { x: 1, y: 2 }, b: 3 });
      const seen = await notices(twin);
      const $version = await desire(deviceId, { a: { x: null }, c: [1] });
      await until('it arrives', () => seen.length > 0);
      assert.deepEqual(seen, [{ a: { x: null }, c: [1], $version }]);
      const { $version: _, ...desired } = JSON.parse(JSON.stringify(twin.properties.desired));
      assert.deepEqual(desired, { a: { y: 2 }, b: 3, c: [1] }, 'the SDK merges as the hub does');
      await client.close();
    },
  },
  {
    name: 'a listener may be for a part',
    fact: 'The SDK fires an event for each value that a patch names.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      const seen = await notices(twin, 'properties.desired.climate.max');
      await desire(deviceId, { climate: { min: 5 } });
      await desire(deviceId, { climate: { max: 30 } });
      await until('it arrives', () => seen.length > 0);
      assert.deepEqual(seen, [30]);
      await client.close();
    },
  },
  {
    name: 'tags are no news',
    fact: 'A change of tags only sends the device nothing.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      const seen = await notices(twin);
      await registry.updateTwin(deviceId, { tags: { a: 1 } }, '*');
      await desire(deviceId, { after: true });
      await until('the change arrives', () => seen.length > 0);
      assert.deepEqual(seen, [{ after: true, $version: 2 }]);
      await client.close();
    },
  },
  {
    name: 'what was refused is no news',
    fact: 'A PATCH that is refused, by its etag or by a limit, sends the device nothing.',
    run: async (fresh) => {
      const { deviceId, client, twin } = await device(fresh);
      const seen = await notices(twin);
      const wrong = [[{ properties: { desired: { 'a.b': 1 } } }, '*'], [{ properties: { desired: { a: 1 } } }, 'AAAAAAAAAAA=']];
      for (const [patch, etag] of wrong) await assert.rejects(registry.updateTwin(deviceId, patch, etag));
      await desire(deviceId, { after: true });
      await until('the change arrives', () => seen.length > 0);
      assert.deepEqual(seen, [{ after: true, $version: 2 }]);
      await client.close();
    },
  },
  {
    name: 'notices are not kept for a device that is away',
    fact: 'Changes made meanwhile are not sent later; the twin GET has them.',
    run: async (fresh) => {
      const { deviceId, connectionString, client, twin } = await device(fresh);
      await notices(twin);
      await client.close();
      await desire(deviceId, { meanwhile: 1 });
      const again = await connect(connectionString);
      const now = await again.getTwin();
      assert.equal(now.properties.desired.meanwhile, 1);
      const seen = await notices(now);
      await desire(deviceId, { later: 2 });
      await until('the next change arrives', () => seen.length > 0);
      assert.deepEqual(seen, [{ later: 2, $version: 3 }]);
      await again.close();
    },
  },
  {
    name: 'a device is told of its own changes only',
    fact: 'Notices go to the device whose twin changed.',
    run: async (fresh) => {
      const [one, other] = [await device(fresh), await device(fresh)];
      const [mine, theirs] = [await notices(one.twin), await notices(other.twin)];
      await desire(one.deviceId, { for: 'one' });
      await desire(other.deviceId, { for: 'other' });
      await until('both arrive', () => mine.length > 0 && theirs.length > 0);
      assert.deepEqual([mine, theirs], [[{ for: 'one', $version: 2 }], [{ for: 'other', $version: 2 }]]);
      await Promise.all([one.client.close(), other.client.close()]);
    },
  },
  {
    name: 'a model is announced',
    fact: 'modelId of a twin is the model-id of the device’s last CONNECT that had one, and queries find it.',
    run: async (fresh) => {
      const deviceId = fresh();
      const connectionString = await createDevice(deviceId);
      const modelOf = async () => {
        const { rows } = await query(`SELECT modelId FROM devices WHERE deviceId = '${deviceId}'`);
        return rows[0].modelId;
      };
      assert.equal(await modelOf(), '');
      const shows = (modelId) => until('the model is shown', async () => (await modelOf()) === modelId);
      const announce = async (modelId) => {
        const client = Client.fromConnectionString(connectionString, Mqtt);
        await client.setOptions({ modelId });
        await client.open();
        await client.close();
      };
      await announce('dtmi:com:example:Thermostat;1');
      await shows('dtmi:com:example:Thermostat;1');
      await (await connect(connectionString)).close();
      assert.equal(await modelOf(), 'dtmi:com:example:Thermostat;1', 'a device that announces none keeps it');
      await announce('dtmi:com:example:Node;2');
      await shows('dtmi:com:example:Node;2');
      const { rows } = await query("SELECT deviceId FROM devices WHERE modelId = 'dtmi:com:example:Node;2'");
      assert.deepEqual(rows, [{ deviceId }]);
    },
  },
]);
