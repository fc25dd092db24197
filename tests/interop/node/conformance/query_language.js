'use strict';
// What the query language's documentation shows beyond plain conditions, by azure-iothub's Registry.createQuery.

const { randomUUID } = require('node:crypto');
const { assert, createDevice, finished, jobs, query, registry } = require('../support');
const { refused, suite } = require('./suite');

/** Devices with those tags, and a condition that finds them and no other case's. */
async function fleet(fresh, tags) {
  const mark = randomUUID();
  const ids = tags.map(() => fresh());
  for (const [index, deviceId] of ids.entries()) {
    await createDevice(deviceId);
    await registry.updateTwin(deviceId, { tags: { mark, ...tags[index] } }, '*');
  }
  const where = `tags.mark = '${mark}'`;
  /** Which of them, by number, fulfil the condition. */
  const select = async (condition) => {
    const { rows } = await query(`SELECT deviceId FROM devices WHERE ${where} AND (${condition})`);
    return rows.map((row) => ids.indexOf(row.deviceId)).sort();
  };
  return { ids, where, select };
}

const SITES = ['C', 'A', 'B', 'A', 'C', 'C'].map((site, n) => ({ site, n }));

suite([
  {
    name: 'groups are counted',
    fact: 'GROUP BY a path gives a row for each of its values, with aggregates of the devices that have it.',
    run: async (fresh) => {
      const { where } = await fleet(fresh, [...SITES, { n: 6 }]);
      const list = 'tags.site AS site, COUNT() AS count, SUM(tags.n) AS sum, AVG(tags.n) AS mean, MIN(tags.n) AS least, MAX(tags.n) AS most';
      const { rows } = await query(`SELECT ${list} FROM devices WHERE ${where} GROUP BY tags.site`);
      assert.deepEqual(rows, [
        { count: 1, sum: 6, mean: 6, least: 6, most: 6 },
        { site: 'A', count: 2, sum: 4, mean: 2, least: 1, most: 3 },
        { site: 'B', count: 1, sum: 2, mean: 2, least: 2, most: 2 },
        { site: 'C', count: 3, sum: 9, mean: 3, least: 0, most: 5 },
      ]);
    },
  },
  {
    name: 'groups come in pages',
    fact: 'A query with groups is paged like any other, each group once.',
    run: async (fresh) => {
      const { where } = await fleet(fresh, SITES);
      const text = `SELECT tags.site AS site, COUNT() AS n FROM devices WHERE ${where} GROUP BY tags.site`;
      const { rows, pages } = await query(text, 2);
      assert.deepEqual([rows, pages], [[{ site: 'A', n: 2 }, { site: 'B', n: 1 }, { site: 'C', n: 3 }], [2, 1]]);
    },
  },
  {
    name: 'an aggregate needs no name',
    fact: 'COUNT() without AS is called $1.',
    run: async (fresh) => {
      const { where } = await fleet(fresh, SITES);
      assert.deepEqual((await query(`select count() from devices where ${where}`)).rows, [{ $1: 6 }]);
      assert.deepEqual((await query(`SELECT COUNT() AS n FROM devices WHERE ${where} AND tags.n > 9`)).rows, [{ n: 0 }]);
    },
  },
  {
    name: 'TOP bounds an answer',
    fact: 'SELECT TOP n gives at most n rows, however they are paged.',
    run: async (fresh) => {
      const { where } = await fleet(fresh, SITES);
      const { rows, pages } = await query(`SELECT TOP 3 * FROM devices WHERE ${where}`, 2);
      assert.deepEqual([rows.length, pages], [3, [2, 1]]);
    },
  },
  {
    name: 'names are as twins have them',
    fact: 'SELECT DeviceId, LastActivityTime gives deviceId and lastActivityTime.',
    run: async (fresh) => {
      const { ids, where } = await fleet(fresh, [{}]);
      const text = `SELECT DeviceId, LastActivityTime FROM devices WHERE status = 'enabled' AND ${where}`;
      const { rows } = await query(text);
      assert.deepEqual(Object.keys(rows[0]).sort(), ['deviceId', 'lastActivityTime']);
      assert.equal(rows[0].deviceId, ids[0]);
    },
  },
  {
    name: 'odd names are quoted',
    fact: 'A name in a path may stand in [[ ]].',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ 'odd-name': { 'x/y': 1 } }, { 'odd-name': { 'x/y': 2 } }]);
      assert.deepEqual(await select('tags.[[odd-name]].[[x/y]] = 2'), [1]);
    },
  },
  {
    name: 'paths begin with their source',
    fact: 'A path may begin with the collection that it is from.',
    run: async (fresh) => {
      const { ids, select } = await fleet(fresh, [{ n: 1 }, { n: 2 }]);
      assert.deepEqual(await select(`devices.tags.n = 2 AND devices.deviceId IN ['${ids[0]}', '${ids[1]}']`), [1]);
    },
  },
  {
    name: 'numbers are computed with',
    fact: '+, -, *, / and % compute; multiplication binds closer; 0x begins a hexadecimal number.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ n: 3 }, { n: 10 }, { n: 'x' }]);
      assert.deepEqual(await select('tags.n + 2 * 3 = 9'), [0]);
      assert.deepEqual(await select('(tags.n - 1) / 3 = 3 AND tags.n % 3 = 1'), [1]);
      assert.deepEqual(await select('tags.n = 0xA'), [1]);
      assert.deepEqual(await select('tags.n / 0 > 0 OR tags.n + 1 = 1'), []);
    },
  },
  {
    name: 'text is found by its beginning',
    fact: 'STARTSWITH is what twin queries call it (MicrosoftDocs/azure-docs #110329); SDK samples use it on deviceId.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ s: 'north-1' }, { s: 'south-1' }, { s: 7 }]);
      assert.deepEqual(await select("STARTSWITH(tags.s, 'north')"), [0]);
      assert.deepEqual(await select("NOT STARTSWITH(tags.s, 'north')"), [1]);
    },
  },
  {
    name: 'null is a value',
    fact: 'What is not there is not null: neither equality nor inequality holds for it.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ s: 'a' }, {}]);
      assert.deepEqual(await select('tags.s = null'), []);
      assert.deepEqual(await select('tags.s != null'), [0]);
      assert.deepEqual(await select('tags.s = undefined OR tags.s != undefined'), []);
    },
  },
  {
    name: 'objects are not compared',
    fact: 'Comparisons are supported between primitive types only.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ o: { a: 1 }, p: { a: 1 } }]);
      assert.deepEqual(await select('tags.o = tags.p OR tags.o != tags.p'), []);
      assert.deepEqual(await select('tags.o.a = tags.p.a'), [0]);
    },
  },
  {
    name: 'a condition is a boolean',
    fact: 'Any constant other than true counts as false.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{}]);
      for (const constant of ['null', 'undefined', "'true'", '1', '[true]', 'false', 'tags']) {
        assert.deepEqual(await select(constant), [], constant);
      }
      assert.deepEqual(await select('true'), [0]);
    },
  },
  {
    name: 'modules are a collection of their own',
    fact: 'FROM devices.modules is a source, FROM devices has no module twins.',
    run: async (fresh) => {
      const { ids } = await fleet(fresh, [{}]);
      assert.deepEqual((await query(`SELECT * FROM devices.modules WHERE devices.deviceId = '${ids[0]}'`)).rows, []);
    },
  },
  {
    name: 'jobs are queried whole',
    fact: 'FROM devices.jobs takes SELECT * only, and no condition on the twin.',
    run: async (fresh) => {
      const { ids, where } = await fleet(fresh, [{}, {}]);
      const jobId = randomUUID();
      await jobs.scheduleTwinUpdate(jobId, where, { etag: '*', tags: { seen: true } }, new Date(), 300);
      await finished(jobId);
      const condition = `devices.jobs.jobId = '${jobId}' AND devices.jobs.createdTimeUtc > '2016-09-01'`;
      const { rows, pages } = await query(`SELECT * FROM devices.jobs WHERE ${condition}`, 1);
      assert.deepEqual(rows.map((row) => row.deviceId).sort(), [...ids].sort());
      assert.ok(pages.every((size) => size <= 1), `${pages}`);
      for (const text of [
        'SELECT COUNT() FROM devices.jobs',
        'SELECT jobId FROM devices.jobs',
        "SELECT * FROM devices.jobs WHERE tags.site = 'A'",
      ]) {
        await refused(query(text), 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
      }
    },
  },
  {
    name: 'what is not in the language is refused',
    fact: 'SELECT, FROM, WHERE and GROUP BY are all clauses there are.',
    run: async () => {
      for (const text of [
        'SELECT * FROM devices ORDER BY deviceId',
        'SELECT DISTINCT tags.site FROM devices',
        'SELECT COUNT() AS n FROM devices GROUP BY tags.a HAVING n > 1',
        'SELECT COUNT() AS n FROM devices GROUP BY tags.a, tags.b',
        "SELECT * FROM devices WHERE deviceId LIKE 'a%'",
        "SELECT * FROM devices WHERE deviceId IN ('a')",
        'SELECT * FROM devices JOIN devices.modules',
      ]) {
        await refused(query(text), 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
      }
    },
  },
]);
