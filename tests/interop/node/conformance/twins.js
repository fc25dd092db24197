'use strict';
// Twins as a back end sees and changes them, by azure-iothub.

const { assert, connect, createDevice, registry } = require('../support');
const { refused, suite } = require('./suite');

/** A new device's twin. */
async function created(fresh) {
  const deviceId = fresh();
  await createDevice(deviceId);
  return twinOf(deviceId);
}

/** The twin as it came: the SDK's object has methods beside it. */
async function twinOf(deviceId) {
  return plain((await registry.getTwin(deviceId)).responseBody);
}

function plain(twin) {
  return JSON.parse(JSON.stringify(twin));
}

async function patched(deviceId, patch, etag = '*') {
  return plain((await registry.updateTwin(deviceId, patch, etag)).responseBody);
}

function desire(deviceId, desired) {
  return patched(deviceId, { properties: { desired } });
}

/** Without what the hub adds. */
function values(section) {
  const { $metadata, $version, ...rest } = section;
  return rest;
}

async function refusedPatch(deviceId, patch) {
  await refused(registry.updateTwin(deviceId, patch, '*'), 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
}

/** Objects in each other, `depth` of them below the section. */
function nested(depth) {
  return depth === 0 ? 1 : { a: nested(depth - 1) };
}

suite([
  {
    name: 'a new twin has every member',
    fact: 'A new twin is at version 1 with etag AAAAAAAAAAE=, its sections at $version 1 with $metadata.$lastUpdated.',
    run: async (fresh) => {
      const twin = await created(fresh);
      const { responseBody: identity } = await registry.get(twin.deviceId);
      assert.deepEqual([twin.etag, twin.version], ['AAAAAAAAAAE=', 1]);
      assert.deepEqual([twin.status, twin.connectionState, twin.statusReason], ['enabled', 'Disconnected', null]);
      assert.equal(twin.deviceEtag, identity.etag);
      assert.equal(twin.cloudToDeviceMessageCount, 0);
      assert.equal(twin.authenticationType, 'sas');
      assert.deepEqual(twin.x509Thumbprint, { primaryThumbprint: null, secondaryThumbprint: null });
      assert.deepEqual(twin.capabilities, { iotEdge: false });
      assert.ok('statusUpdateTime' in twin && !('generationId' in twin), 'not the names of the identity');
      for (const section of [twin.properties.desired, twin.properties.reported]) {
        assert.equal(section.$version, 1);
        assert.ok(Number.isFinite(Date.parse(section.$metadata.$lastUpdated)));
        assert.deepEqual(values(section), {});
      }
    },
  },
  {
    name: 'an unknown twin is not found',
    fact: 'GET and PATCH of a twin whose device is not there are 404 DeviceNotFound.',
    run: async (fresh) => {
      const nobody = fresh('nobody');
      await refused(registry.getTwin(nobody), 404, 'DeviceNotFoundError', 'ErrorCode:DeviceNotFound');
      const update = registry.updateTwin(nobody, { tags: { a: 1 } }, '*');
      await refused(update, 404, 'DeviceNotFoundError', 'ErrorCode:DeviceNotFound');
    },
  },
  {
    name: 'tags merge',
    fact: 'PATCH merges objects at every level, and null removes.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await patched(deviceId, { tags: { site: 'north', place: { floor: 1, room: 2 }, old: true } });
      const twin = await patched(deviceId, { tags: { place: { room: null, seat: 3 }, old: null } });
      assert.deepEqual(twin.tags, { site: 'north', place: { floor: 1, seat: 3 } });
    },
  },
  {
    name: 'tags leave the desired version alone',
    fact: 'A change of tags counts the twin’s version and etag, and no $version.',
    run: async (fresh) => {
      const before = await created(fresh);
      const after = await patched(before.deviceId, { tags: { a: 1 } });
      assert.deepEqual([after.version, after.etag], [2, 'AAAAAAAAAAI=']);
      assert.equal(after.properties.desired.$version, 1);
      assert.deepEqual(after.properties.desired.$metadata, before.properties.desired.$metadata);
    },
  },
  {
    name: 'a change of desired properties is counted',
    fact: 'Each PATCH of desired properties adds one to $version, and to the twin’s version.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      for (const step of [2, 3, 4]) {
        const twin = await desire(deviceId, { step });
        assert.deepEqual([twin.properties.desired.$version, twin.version], [step, step]);
      }
    },
  },
  {
    name: 'metadata mirrors desired properties',
    fact: '$metadata has $lastUpdated and $lastUpdatedVersion for the section, each object and each value.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      const { desired } = (await desire(deviceId, { cfg: { f: '5m', list: [1] }, on: true })).properties;
      const stamped = (metadata) => {
        assert.equal(metadata.$lastUpdatedVersion, 2);
        assert.match(metadata.$lastUpdated, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/);
        return Object.keys(metadata).filter((key) => !key.startsWith('$')).sort();
      };
      assert.deepEqual(stamped(desired.$metadata), ['cfg', 'on']);
      assert.deepEqual(stamped(desired.$metadata.cfg), ['f', 'list']);
      for (const leaf of [desired.$metadata.cfg.f, desired.$metadata.cfg.list, desired.$metadata.on]) {
        assert.deepEqual(stamped(leaf), []);
      }
    },
  },
  {
    name: 'metadata of what did not change stays',
    fact: 'Only the stamps of changed values and of what they are in move.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await desire(deviceId, { a: { x: 1, y: 1 }, b: { z: 1 } });
      const { $metadata } = (await desire(deviceId, { a: { x: 2 } })).properties.desired;
      const versions = [$metadata, $metadata.a, $metadata.a.x, $metadata.a.y, $metadata.b, $metadata.b.z];
      assert.deepEqual(versions.map((each) => each.$lastUpdatedVersion), [3, 3, 3, 2, 2, 2]);
    },
  },
  {
    name: 'metadata goes with a value',
    fact: 'A removed value has no $metadata; the stamp of what it was in moves.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await desire(deviceId, { a: { x: 1, y: 1 } });
      const { desired } = (await desire(deviceId, { a: { x: null } })).properties;
      assert.deepEqual(values(desired), { a: { y: 1 } });
      assert.deepEqual(Object.keys(desired.$metadata.a).sort(), ['$lastUpdated', '$lastUpdatedVersion', 'y']);
      assert.equal(desired.$metadata.a.$lastUpdatedVersion, 3);
    },
  },
  {
    name: 'null of what is not there removes nothing',
    fact: 'null for a key that is not there is no error.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await desire(deviceId, { kept: 1 });
      const twin = await desire(deviceId, { absent: null, deep: { absent: null } });
      assert.equal(twin.properties.desired.kept, 1);
      assert.ok(!('absent' in twin.properties.desired));
      assert.ok(!('absent' in (twin.properties.desired.deep ?? {})));
    },
  },
  {
    name: 'an object takes the place of a value, and the reverse',
    fact: 'A merge of an object into a value replaces it; a value replaces an object.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await desire(deviceId, { a: 1, b: { c: 1 } });
      const { desired } = (await desire(deviceId, { a: { c: 1 }, b: 1 })).properties;
      assert.deepEqual(values(desired), { a: { c: 1 }, b: 1 });
      assert.deepEqual(Object.keys(desired.$metadata.b).sort(), ['$lastUpdated', '$lastUpdatedVersion']);
    },
  },
  {
    name: 'every kind of value comes back',
    fact: 'Values are objects, strings, numbers, booleans and arrays.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      const all = { text: 'grün "x" \\ 日本 \u{1f6aa}', empty: '', integer: -7, fraction: 0.25, large: 1e300, no: false };
      const desired = { ...all, list: [1, 'a', [true], { b: 1 }], nothing: {} };
      await desire(deviceId, desired);
      assert.deepEqual(values((await twinOf(deviceId)).properties.desired), desired);
    },
  },
  {
    name: 'an array is replaced whole',
    fact: 'Arrays do not merge.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await desire(deviceId, { list: [1, 2, 3] });
      assert.deepEqual((await desire(deviceId, { list: [4] })).properties.desired.list, [4]);
    },
  },
  {
    name: 'a stale etag is refused',
    fact: 'If-Match with another etag than the twin’s is 412 PreconditionFailed, and nothing changes.',
    run: async (fresh) => {
      const { deviceId, etag } = await created(fresh);
      await patched(deviceId, { tags: { a: 1 } }, etag);
      const stale = registry.updateTwin(deviceId, { tags: { a: 2 } }, etag);
      await refused(stale, 412, 'InvalidEtagError', 'ErrorCode:PreconditionFailed');
      assert.deepEqual((await twinOf(deviceId)).tags, { a: 1 });
    },
  },
  {
    name: 'the twin of the SDK updates itself',
    fact: 'Twin.update sends the etag of the answer that it came from.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      const { responseBody: twin } = await registry.getTwin(deviceId);
      await twin.update({ tags: { a: 1 } });
      assert.deepEqual(twin.tags, { a: 1 });
      await patched(deviceId, { tags: { a: 2 } });
      await refused(twin.update({ tags: { a: 3 } }), 412, 'InvalidEtagError', 'PreconditionFailed');
      await twin.get();
      assert.deepEqual(twin.tags, { a: 2 });
    },
  },
  {
    name: 'a report leaves the etag alone',
    fact: 'Reported properties have their own $version; the twin’s etag and version do not move (choice).',
    run: async (fresh) => {
      const deviceId = fresh();
      const client = await connect(await createDevice(deviceId));
      const before = await twinOf(deviceId);
      const twin = await client.getTwin();
      await new Promise((resolve, reject) => {
        twin.properties.reported.update({ a: 1 }, (error) => (error ? reject(error) : resolve()));
      });
      const after = await twinOf(deviceId);
      assert.deepEqual([after.etag, after.version], [before.etag, before.version]);
      assert.deepEqual([after.properties.reported.a, after.properties.reported.$version], [1, 2]);
      await client.close();
    },
  },
  {
    name: 'members that are not a back end’s are ignored',
    fact: 'PATCH takes tags and desired properties; deviceId, etag, reported, $version and $metadata are ignored.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      const desired = { a: 1, $version: 77, $metadata: { a: {} } };
      const patch = { deviceId: 'other', etag: 'x', version: 9, status: 'disabled', tags: { t: 1 } };
      const twin = await patched(deviceId, { ...patch, properties: { desired, reported: { b: 1 } } });
      assert.deepEqual([twin.deviceId, twin.status, twin.tags], [deviceId, 'enabled', { t: 1 }]);
      assert.deepEqual([values(twin.properties.desired), twin.properties.desired.$version], [{ a: 1 }, 2]);
      assert.deepEqual(values(twin.properties.reported), {});
    },
  },
  {
    name: 'sections are objects',
    fact: 'tags or desired properties that are no object are 400 ArgumentInvalid.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      for (const wrong of [[1], 'a', 7]) {
        await refusedPatch(deviceId, { tags: wrong });
        await refusedPatch(deviceId, { properties: { desired: wrong } });
      }
    },
  },
  {
    name: 'ten levels are the most',
    fact: 'Sections have at most ten levels of objects below them.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await patched(deviceId, { tags: nested(10), properties: { desired: nested(10) } });
      await refusedPatch(deviceId, { tags: nested(12) });
      await refusedPatch(deviceId, { properties: { desired: nested(12) } });
      assert.equal((await twinOf(deviceId)).version, 2);
    },
  },
  {
    name: 'keys have forbidden characters',
    fact: 'A key with a dot, a dollar sign, a blank or a control character is 400 ArgumentInvalid.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      for (const key of ['a.b', 'a$b', '$a', 'a b', 'a\tb', 'a\u0000b']) {
        await refusedPatch(deviceId, { tags: { [key]: 1 } });
        await refusedPatch(deviceId, { properties: { desired: { in: { [key]: 1 } } } });
      }
      const odd = { 'ключ-日本_#/[]{}"\'%&': 1 };
      assert.deepEqual((await patched(deviceId, { tags: odd })).tags, odd);
    },
  },
  {
    name: 'keys have a length',
    fact: 'A key is at most 1 KiB of UTF-8.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await desire(deviceId, { ['ü'.repeat(512)]: 1 });
      await refusedPatch(deviceId, { properties: { desired: { [`${'ü'.repeat(512)}a`]: 1 } } });
    },
  },
  {
    name: 'keys differ by case',
    fact: 'Keys are case-sensitive.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      assert.deepEqual((await patched(deviceId, { tags: { a: 1, A: 2 } })).tags, { a: 1, A: 2 });
    },
  },
  {
    name: 'strings have a length',
    fact: 'A string is at most 4 KiB of UTF-8.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      await desire(deviceId, { text: 'ü'.repeat(2048) });
      await refusedPatch(deviceId, { properties: { desired: { text: `${'ü'.repeat(2048)}a` } } });
    },
  },
  {
    name: 'integers have a range',
    fact: 'Integers are within -4503599627370496 and 4503599627370495.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      const ends = { least: -4503599627370496, most: 4503599627370495 };
      assert.deepEqual(values((await desire(deviceId, ends)).properties.desired), ends);
      await refusedPatch(deviceId, { properties: { desired: { n: 4503599627370496 } } });
      await refusedPatch(deviceId, { properties: { desired: { n: -4503599627370497 } } });
    },
  },
  {
    name: 'tags have 8 KiB',
    fact: 'The keys and values of tags are at most 8 KiB; a number counts 8 bytes, a boolean 4.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      // Two keys of one byte each.
      const full = { a: 'x'.repeat(4096), b: 'y'.repeat(8192 - 4096 - 2) };
      await patched(deviceId, { tags: full });
      await refusedPatch(deviceId, { tags: { c: true } });
      await patched(deviceId, { tags: { b: 'y'.repeat(8192 - 4096 - 2 - 9) } });
      await patched(deviceId, { tags: { n: 1 } });
      await refusedPatch(deviceId, { tags: { c: true } });
    },
  },
  {
    name: 'desired properties have 32 KiB',
    fact: 'The keys and values of desired properties are at most 32 KiB, counted after the merge.',
    run: async (fresh) => {
      const { deviceId } = await created(fresh);
      const eighth = 'x'.repeat(4096 - 1);
      const full = Object.fromEntries([...'abcdefgh'].map((key) => [key, eighth]));
      await desire(deviceId, full);
      await refusedPatch(deviceId, { properties: { desired: { i: 1 } } });
      const { desired } = (await desire(deviceId, { a: null, i: 1 })).properties;
      assert.deepEqual([desired.i, 'a' in desired], [1, false]);
    },
  },
  {
    name: 'what is refused changes nothing',
    fact: 'A PATCH of which one part is wrong is refused whole.',
    run: async (fresh) => {
      const before = await created(fresh);
      await refusedPatch(before.deviceId, { tags: { good: 1 }, properties: { desired: { 'a.b': 1 } } });
      assert.deepEqual(await twinOf(before.deviceId), before);
    },
  },
]);
