'use strict';
// Runs a table of cases against the hub and tells of each in a line of the Test Anything Protocol, which the test that
// started the program counts.
//
// A case is `{ name, fact, run }`: what it does, the rule of Azure's that it checks, and how. `run` gets a function that
// makes device ids which no other case has. Cases run beside each other, as most of them wait for something; one that
// looks at the hub as a whole is `alone: true` and runs after the others.

const { assert, main } = require('../support');

/** Few enough that none is late because of the others. */
const AT_ONCE = 6;

function suite(cases) {
  main(async () => {
    console.log(`1..${cases.length}`);
    const names = new Set(cases.map((each) => each.name));
    assert.equal(names.size, cases.length, 'every case has a name of its own');
    const numbered = cases.map((each, index) => ({ ...each, number: index + 1 }));
    const beside = numbered.filter((each) => !each.alone);
    const workers = Array.from({ length: AT_ONCE }, async () => {
      while (beside.length > 0) await attempt(beside.shift());
    });
    await Promise.all(workers);
    for (const each of numbered.filter((each) => each.alone)) await attempt(each);
  });
}

async function attempt({ number, name, fact, run }) {
  assert.ok(fact, `${name} has a fact`);
  let made = 0;
  try {
    await run((kind = 'device') => `case-${number}-${kind}-${++made}`);
    console.log(`ok ${number} - ${name}`);
  } catch (error) {
    console.log(`not ok ${number} - ${name}`);
    const text = `the fact: ${fact}\n${error.stack}\n${error.responseBody ?? ''}`;
    console.log(text.trimEnd().replace(/^/gm, '# '));
  }
}

/** The call must fail with that HTTP status, the SDK's class for it, and a body that names `code`. */
async function refused(call, status, errorName, code) {
  await assert.rejects(call, (error) => {
    const found = [error.response?.statusCode, error.name, (error.responseBody ?? '').includes(code)];
    assert.deepEqual(found, [status, errorName, true], `${error.message}: ${error.responseBody}`);
    return true;
  });
}

module.exports = { refused, suite };
