'use strict';
// Automatic device management by the Node SDK's registry: a configuration that follows its devices.

const { assert, connect, createDevice, main, query, registry, until } = require('./support');

main(async () => {
  const connectionString = await createDevice('chilled');
  await createDevice('warm');
  await tag('chilled', 'A');
  const configuration = {
    id: 'chiller',
    content: { deviceContent: { 'properties.desired.chiller': { temperature: 66 } } },
    targetCondition: "tags.site = 'A'",
    priority: 10,
    metrics: { queries: { cold: 'SELECT deviceId FROM devices WHERE properties.reported.cold = true' } },
  };
  const { responseBody: made } = await registry.addConfiguration(configuration);
  assert.equal(made.schemaVersion, '1.0', 'the SDK sets it');
  assert.deepEqual(made.content, configuration.content);
  assert.ok(made.etag && Date.parse(made.createdTimeUtc));
  // The device is told, and found by what was done to it.
  const client = await connect(connectionString);
  const twin = await client.getTwin();
  await until('the setting', () => twin.properties.desired.chiller?.temperature === 66);
  const applied = await query("SELECT deviceId FROM devices WHERE configurations.[[chiller]].status = 'Applied'", 10);
  assert.deepEqual(applied.rows, [{ deviceId: 'chilled' }]);
  await new Promise((resolve, reject) => {
    twin.properties.reported.update({ cold: true }, (error) => (error ? reject(error) : resolve()));
  });
  const counted = await until('the counts', async () => {
    const { responseBody: found } = await registry.getConfiguration('chiller');
    return found.metrics.results.cold === 1 && found;
  });
  assert.deepEqual(counted.systemMetrics.results, { targetedCount: 1, appliedCount: 1 });
  assert.equal(counted.systemMetrics.queries.targetedCount, "select deviceId from devices where tags.site = 'A'");
  await client.close();

  // Changed with its etag, not with an older one, and in spite of it.
  counted.targetCondition = '*';
  const { responseBody: changed } = await registry.updateConfiguration(counted);
  await until('the other device', async () => (await desired('warm')).chiller?.temperature === 66);
  await assert.rejects(registry.updateConfiguration({ ...changed, etag: made.etag }), { name: 'InvalidEtagError' });
  await registry.updateConfiguration({ ...changed, etag: made.etag, priority: 11 }, true, () => {});
  await until('the priority', async () => (await registry.getConfiguration('chiller')).responseBody.priority === 11);
  await assert.rejects(registry.addConfiguration(configuration), { name: 'DeviceAlreadyExistsError' });

  const { responseBody: list } = await registry.getConfigurations();
  assert.deepEqual(list.map((each) => each.id), ['chiller']);
  await registry.removeConfiguration('chiller');
  assert.deepEqual((await registry.getConfigurations()).responseBody, []);
  await assert.rejects(registry.getConfiguration('chiller'));
  assert.equal((await desired('warm')).chiller.temperature, 66, 'what it has set stays');
});

async function tag(deviceId, site) {
  await registry.updateTwin(deviceId, { tags: { site } }, '*');
}

async function desired(deviceId) {
  return (await registry.getTwin(deviceId)).responseBody.properties.desired;
}
