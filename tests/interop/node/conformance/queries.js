'use strict';
// The query language over twins, by azure-iothub's Registry.createQuery.

const { randomUUID } = require('node:crypto');
const { assert, connect, createDevice, query, registry } = require('../support');
const { refused, suite } = require('./suite');

/** Devices with those twins' parts, and a tag that no other case's devices have. */
async function fleet(fresh, parts) {
  const mark = randomUUID();
  const ids = parts.map(() => fresh());
  for (const [index, { tags = {}, desired }] of parts.entries()) {
    await createDevice(ids[index]);
    const patch = { tags: { mark, ...tags } };
    if (desired) patch.properties = { desired };
    await registry.updateTwin(ids[index], patch, '*');
  }
  const where = `tags.mark = '${mark}'`;
  /** Which of them, by number, fulfil the condition. */
  const select = async (condition) => {
    const { rows } = await query(`SELECT * FROM devices WHERE ${where} AND (${condition})`);
    return rows.map((row) => ids.indexOf(row.deviceId)).sort();
  };
  return { ids, mark, where, select };
}

suite([
  {
    name: 'rows are whole twins',
    fact: 'SELECT * rows are the twins of GET /twins/{id}.',
    run: async (fresh) => {
      const { ids, where } = await fleet(fresh, [{ desired: { a: { b: [1] } } }]);
      const { rows } = await query(`SELECT * FROM devices WHERE ${where}`);
      const { responseBody } = await registry.getTwin(ids[0]);
      assert.deepEqual(rows, [JSON.parse(JSON.stringify(responseBody))]);
    },
  },
  {
    name: 'a query gives twins of the SDK',
    fact: 'nextAsTwin makes objects of rows that have a deviceId; they can be updated.',
    run: async (fresh) => {
      const { ids, where } = await fleet(fresh, [{}]);
      const { result } = await registry.createQuery(`SELECT * FROM devices WHERE ${where}`).nextAsTwin();
      assert.equal(result.length, 1);
      await result[0].update({ tags: { seen: true } });
      assert.equal((await registry.getTwin(ids[0])).responseBody.tags.seen, true);
    },
  },
  {
    name: 'pages follow each other',
    fact: 'x-ms-max-item-count is the size of a page; the token leads through all rows, each once.',
    run: async (fresh) => {
      const { ids, where } = await fleet(fresh, Array.from({ length: 7 }, () => ({})));
      const { rows, pages } = await query(`SELECT * FROM devices WHERE ${where}`, 3);
      assert.deepEqual(pages, [3, 3, 1]);
      assert.deepEqual(rows.map((row) => row.deviceId).sort(), [...ids].sort());
    },
  },
  {
    name: 'a page that is just full may be the last',
    fact: 'The last page has no x-ms-continuation, also when it is full.',
    run: async (fresh) => {
      const { where } = await fleet(fresh, Array.from({ length: 4 }, () => ({})));
      const { rows, pages } = await query(`SELECT * FROM devices WHERE ${where}`, 2);
      assert.equal(rows.length, 4);
      assert.ok(pages.every((size, index) => size === (index < 2 ? 2 : 0)), `${pages}`);
    },
  },
  {
    name: 'a page’s token outlives changes',
    fact: 'A device that is deleted between two pages disturbs nobody else’s row.',
    run: async (fresh) => {
      const { ids, where } = await fleet(fresh, Array.from({ length: 5 }, () => ({})));
      const cursor = registry.createQuery(`SELECT * FROM devices WHERE ${where}`, 2);
      const page = () => new Promise((resolve, reject) => {
        cursor.next((error, results) => (error ? reject(error) : resolve(results.map((row) => row.deviceId))));
      });
      const first = await page();
      await registry.delete(first[1]);
      const rest = [];
      while (cursor.hasMoreResults) rest.push(...(await page()));
      assert.deepEqual([...first, ...rest].sort(), [...ids].sort());
    },
  },
  {
    name: 'nothing found is an empty array',
    fact: 'A query without rows answers [] and no token.',
    run: async () => {
      const { rows, pages } = await query("SELECT * FROM devices WHERE deviceId = 'nobody-at-all'");
      assert.deepEqual([rows, pages], [[], [0]]);
    },
  },
  {
    name: 'values are compared',
    fact: '=, !=, <>, <, <=, > and >= compare numbers and strings.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ tags: { n: 1, s: 'a' } }, { tags: { n: 2, s: 'b' } }, { tags: { n: 3, s: 'c' } }]);
      for (const [condition, expected] of [
        ['tags.n = 2', [1]],
        ['tags.n != 2', [0, 2]],
        ['tags.n <> 2', [0, 2]],
        ['tags.n < 2', [0]],
        ['tags.n <= 2', [0, 1]],
        ['tags.n > 2', [2]],
        ['tags.n >= 2', [1, 2]],
        ["tags.s > 'a'", [1, 2]],
        ['tags.s = "b"', [1]],
      ]) {
        assert.deepEqual(await select(condition), expected, condition);
      }
    },
  },
  {
    name: 'conditions are combined',
    fact: 'AND binds closer than OR; NOT and parentheses are there.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ tags: { a: 1, b: 1 } }, { tags: { a: 1, b: 2 } }, { tags: { a: 2, b: 2 } }]);
      assert.deepEqual(await select('tags.a = 2 OR tags.a = 1 AND tags.b = 1'), [0, 2]);
      assert.deepEqual(await select('(tags.a = 2 OR tags.a = 1) AND tags.b = 1'), [0]);
      assert.deepEqual(await select('NOT (tags.a = 1)'), [2]);
      assert.deepEqual(await select('tags.a = 1 AND NOT tags.b = 1'), [1]);
    },
  },
  {
    name: 'a value may be one of a list',
    fact: 'IN and NIN take lists in brackets.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ tags: { n: 1 } }, { tags: { n: 2 } }, { tags: { n: 3 } }]);
      assert.deepEqual(await select('tags.n IN [1, 3, 9]'), [0, 2]);
      assert.deepEqual(await select('tags.n NIN [1, 3]'), [1]);
    },
  },
  {
    name: 'a path may be there or not',
    fact: 'IS_DEFINED tells whether a path is there; a comparison with what is not there never holds.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ tags: { n: 1 } }, {}]);
      assert.deepEqual(await select('IS_DEFINED(tags.n)'), [0]);
      assert.deepEqual(await select('NOT IS_DEFINED(tags.n)'), [1]);
      assert.deepEqual(await select('tags.n = 1 OR tags.n = 2'), [0]);
      assert.deepEqual(await select('tags.n > 0'), [0]);
    },
  },
  {
    name: 'kinds are not mixed',
    fact: 'A number never equals a string, nor a boolean one.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ tags: { v: 1 } }, { tags: { v: '1' } }, { tags: { v: true } }]);
      assert.deepEqual(await select('tags.v = 1'), [0]);
      assert.deepEqual(await select("tags.v = '1'"), [1]);
      assert.deepEqual(await select('tags.v = true'), [2]);
    },
  },
  {
    name: 'desired and reported properties are queried',
    fact: 'Paths begin with tags, properties.desired or properties.reported, and go through objects.',
    run: async (fresh) => {
      const { ids, select } = await fleet(fresh, [{ desired: { cfg: { level: 5 } } }, {}]);
      const { responseBody: identity } = await registry.get(ids[1]);
      const key = identity.authentication.symmetricKey.primaryKey;
      const client = await connect(`HostName=localhost;DeviceId=${ids[1]};SharedAccessKey=${key}`);
      const twin = await client.getTwin();
      await new Promise((resolve, reject) => {
        twin.properties.reported.update({ cfg: { level: 5 } }, (error) => (error ? reject(error) : resolve()));
      });
      assert.deepEqual(await select('properties.desired.cfg.level = 5'), [0]);
      assert.deepEqual(await select('properties.reported.cfg.level = 5'), [1]);
      assert.deepEqual(await select("connectionState = 'Connected'"), [1]);
      await client.close();
    },
  },
  {
    name: 'status is queried',
    fact: 'Members of the twin itself, such as status, can be asked for.',
    run: async (fresh) => {
      const { ids, select } = await fleet(fresh, [{}, {}]);
      await registry.update({ deviceId: ids[1], status: 'disabled' });
      assert.deepEqual(await select("status = 'disabled'"), [1]);
    },
  },
  {
    name: 'members may be chosen',
    fact: 'A list of paths gives rows of those, under their last name or their alias.',
    run: async (fresh) => {
      const { ids, where } = await fleet(fresh, [{ tags: { place: { floor: 3 } } }]);
      const { rows } = await query(`SELECT deviceId, tags.place.floor AS floor FROM devices WHERE ${where}`);
      assert.deepEqual(rows, [{ deviceId: ids[0], floor: 3 }]);
    },
  },
  {
    name: 'devices are counted',
    fact: 'COUNT() is a row of its own.',
    run: async (fresh) => {
      const { where } = await fleet(fresh, [{}, {}, {}]);
      const { rows } = await query(`SELECT COUNT() AS total FROM devices WHERE ${where}`);
      assert.deepEqual(rows, [{ total: 3 }]);
    },
  },
  {
    name: 'keywords have no case',
    fact: 'Keywords and functions are read whatever their case; user keys are not.',
    run: async (fresh) => {
      const { ids, mark } = await fleet(fresh, [{ tags: { Upper: 1 } }]);
      const find = async (name) => {
        const text = `select * from devices where tags.mark = '${mark}' and is_defined(tags.${name})`;
        return (await query(text)).rows.map((row) => row.deviceId);
      };
      assert.deepEqual([await find('Upper'), await find('upper')], [ids, []]);
    },
  },
  {
    name: 'strings may hold quotation marks',
    fact: 'Strings stand in single or double quotation marks, with backslash escapes.',
    run: async (fresh) => {
      const { select } = await fleet(fresh, [{ tags: { s: 'it\'s "odd" \\ grün' } }]);
      assert.deepEqual(await select(String.raw`tags.s = 'it\'s "odd" \\ grün'`), [0]);
      assert.deepEqual(await select(String.raw`tags.s = "it's \"odd\" \\ gr\u00fcn"`), [0]);
    },
  },
  {
    name: 'a change is found at once',
    fact: 'A query sees what was answered before it (Azure: usually within seconds).',
    run: async (fresh) => {
      const { ids, select } = await fleet(fresh, [{ tags: { step: 1 } }]);
      await registry.updateTwin(ids[0], { tags: { step: 2 } }, '*');
      assert.deepEqual([await select('tags.step = 1'), await select('tags.step = 2')], [[], [0]]);
      await registry.delete(ids[0]);
      assert.deepEqual(await select('tags.step = 2'), []);
    },
  },
  {
    name: 'what is no query is refused',
    fact: 'A text that does not parse is 400, with where it stops.',
    run: async () => {
      for (const text of ['SELECT', 'SELECT FROM devices', 'SELECT * FROM nowhere', 'SELECT * FROM devices WHERE tags.a =', "SELECT * FROM devices WHERE tags.a = 'x"]) {
        await refused(query(text), 400, 'ArgumentError', 'ErrorCode:');
      }
    },
  },
  {
    name: 'a query has a length',
    fact: 'The text of a query is at most 8192 characters.',
    run: async () => {
      const text = (length) => {
        const start = "SELECT * FROM devices WHERE deviceId = '";
        return `${start}${'x'.repeat(length - start.length - 1)}'`;
      };
      assert.deepEqual((await query(text(8192))).rows, []);
      await refused(query(text(8193)), 400, 'ArgumentError', 'ErrorCode:');
    },
  },
]);
