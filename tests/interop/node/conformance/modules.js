'use strict';
// Modules: identities, twins, methods, queries and jobs by azure-iothub, connections by azure-iot-device's ModuleClient.

const { NoRetry } = require('azure-iot-common');
const {
  Mqtt,
  assert,
  connect,
  createDevice,
  device,
  event,
  finished,
  hostName,
  jobRows,
  jobs,
  latch,
  query,
  registry,
  service,
  until,
} = require('../support');
const { refused, suite } = require('./suite');

/** A device, and a module of it with its connection string. */
async function newModule(fresh, moduleId = 'lock') {
  const deviceId = fresh();
  await createDevice(deviceId);
  return { deviceId, ...(await addModule(deviceId, moduleId)) };
}

async function addModule(deviceId, moduleId) {
  const { responseBody: identity } = await registry.addModule({ deviceId, moduleId });
  const { primaryKey, secondaryKey } = identity.authentication.symmetricKey;
  const string = (key) => `HostName=${hostName()};DeviceId=${deviceId};ModuleId=${moduleId};SharedAccessKey=${key}`;
  return { moduleId, identity, connectionString: string(primaryKey), secondString: string(secondaryKey) };
}

async function connectModule(connectionString) {
  const client = device.ModuleClient.fromConnectionString(connectionString, Mqtt);
  client.on('error', (error) => console.error('module client:', error.message));
  await client.open();
  return client;
}

/** The same, with the module connected. */
async function connected(fresh) {
  const made = await newModule(fresh);
  return { ...made, client: await connectModule(made.connectionString) };
}

function invoke(deviceId, moduleId, methodName, payload) {
  return service.invokeDeviceMethod(deviceId, moduleId, { methodName, payload, responseTimeoutInSeconds: 15 });
}

async function telemetry(pattern, count) {
  return until('the telemetry is shown', async () => {
    const lines = await latch('events', '--device', pattern, '--kind', 'telemetry', '--json');
    const messages = lines.split('\n').filter(Boolean).map(JSON.parse);
    return messages.length >= count && messages;
  });
}

suite([
  {
    name: 'a module is created',
    fact: 'PUT /devices/{id}/modules/{id} with empty keys makes two; the identity has moduleId and managedBy, no status.',
    run: async (fresh) => {
      const { deviceId, identity } = await newModule(fresh);
      assert.deepEqual([identity.deviceId, identity.moduleId, identity.managedBy], [deviceId, 'lock', null]);
      assert.deepEqual([identity.status, identity.capabilities], [undefined, undefined]);
      const keys = identity.authentication.symmetricKey;
      assert.deepEqual([keys.primaryKey.length, keys.secondaryKey.length], [44, 44]);
      assert.deepEqual((await registry.getModule(deviceId, 'lock')).responseBody, identity);
    },
  },
  {
    name: 'a module is created once, in a device that is there',
    fact: 'A second module of one name is 409301 ModuleAlreadyExistsOnDevice, one of no device 404001.',
    run: async (fresh) => {
      const { deviceId } = await newModule(fresh);
      const again = registry.addModule({ deviceId, moduleId: 'lock' });
      await refused(again, 409, 'DeviceAlreadyExistsError', 'ModuleAlreadyExistsOnDevice');
      const nowhere = registry.addModule({ deviceId: fresh('nobody'), moduleId: 'lock' });
      await refused(nowhere, 404, 'DeviceNotFoundError', 'DeviceNotFound');
    },
  },
  {
    name: 'modules are listed',
    fact: 'GET /devices/{id}/modules gives the identities of all modules of the device and of no other.',
    run: async (fresh) => {
      const [one, other] = [await newModule(fresh), await newModule(fresh)];
      await addModule(one.deviceId, 'sensor');
      const { responseBody: listed } = await registry.getModulesOnDevice(one.deviceId);
      assert.deepEqual(listed.map((each) => [each.deviceId, each.moduleId]), [
        [one.deviceId, 'lock'],
        [one.deviceId, 'sensor'],
      ]);
      assert.equal((await registry.getModulesOnDevice(other.deviceId)).responseBody.length, 1);
    },
  },
  {
    name: 'an update of a module asks for its etag',
    fact: 'PUT with If-Match of the present etag is 200 and keeps the generation, of a former one 412.',
    run: async (fresh) => {
      const { identity } = await newModule(fresh);
      const { responseBody: updated } = await registry.updateModule({ ...identity, managedBy: 'ops' }, false);
      assert.equal(updated.managedBy, 'ops');
      assert.equal(updated.generationId, identity.generationId);
      assert.notEqual(updated.etag, identity.etag);
      await refused(registry.updateModule(identity, false), 412, 'InvalidEtagError', 'PreconditionFailed');
    },
  },
  {
    name: 'a module is removed',
    fact: 'DELETE is 204, and the module is 404010 ModuleNotFound then, its device still there.',
    run: async (fresh) => {
      const { deviceId } = await newModule(fresh);
      await registry.removeModule(deviceId, 'lock');
      await assert.rejects(registry.getModule(deviceId, 'lock'), (error) => {
        assert.equal(error.response.statusCode, 404);
        assert.ok(error.responseBody.includes('ErrorCode:ModuleNotFound'), error.responseBody);
        return true;
      });
      assert.equal((await registry.get(deviceId)).responseBody.deviceId, deviceId);
    },
  },
  {
    name: 'a device goes with its modules',
    fact: 'Deleting a device deletes its modules and cuts their links.',
    run: async (fresh) => {
      const { deviceId, client } = await connected(fresh);
      client.setRetryPolicy(new NoRetry());
      const gone = event(client, 'disconnect');
      await registry.delete(deviceId);
      await gone;
      await createDevice(deviceId);
      assert.deepEqual((await registry.getModulesOnDevice(deviceId)).responseBody, []);
    },
  },
  {
    name: 'a module connects with both of its keys',
    fact: 'A module connects by a token for host/devices/{id}/modules/{id}, signed with its primary or secondary key.',
    run: async (fresh) => {
      const { deviceId, moduleId, connectionString, secondString } = await newModule(fresh);
      for (const string of [connectionString, secondString]) {
        const client = await connectModule(string);
        const { responseBody: identity } = await registry.getModule(deviceId, moduleId);
        assert.equal(identity.connectionState, 'Connected');
        await client.close();
      }
      assert.equal((await registry.get(deviceId)).responseBody.connectionState, 'Disconnected');
    },
  },
  {
    name: 'a key of the device is no key of its module',
    fact: 'A token that is not signed with the module’s own key is CONNACK 5.',
    run: async (fresh) => {
      const { deviceId, connectionString } = await newModule(fresh);
      const { primaryKey } = (await registry.get(deviceId)).responseBody.authentication.symmetricKey;
      const wrong = connectionString.replace(/SharedAccessKey=.*/, `SharedAccessKey=${primaryKey}`);
      await assert.rejects(connectModule(wrong), { name: 'UnauthorizedError', message: /Not authorized/ });
    },
  },
  {
    name: 'a disabled device keeps its modules out',
    fact: 'Disabling a device cuts its modules’ links and refuses them until it is enabled.',
    run: async (fresh) => {
      const { deviceId, connectionString, client } = await connected(fresh);
      client.setRetryPolicy(new NoRetry());
      const { responseBody: identity } = await registry.get(deviceId);
      const gone = event(client, 'disconnect');
      await registry.update({ ...identity, status: 'disabled' });
      await gone;
      await assert.rejects(connectModule(connectionString), { name: 'UnauthorizedError' });
      await registry.update({ ...identity, status: 'enabled' });
      await (await connectModule(connectionString)).close();
    },
  },
  {
    name: 'a module and its device are connected beside each other',
    fact: 'There is one connection for each identity: a module’s take-over leaves its device’s alone.',
    run: async (fresh) => {
      const deviceId = fresh();
      const ofDevice = await connect(await createDevice(deviceId));
      const { connectionString } = await addModule(deviceId, 'lock');
      const first = await connectModule(connectionString);
      first.setRetryPolicy(new NoRetry());
      const gone = event(first, 'disconnect');
      const second = await connectModule(connectionString);
      await gone;
      assert.ok((await ofDevice.getTwin()).properties.desired.$version >= 1);
      assert.ok((await second.getTwin()).properties.desired.$version >= 1);
      await second.close();
      await ofDevice.close();
    },
  },
  {
    name: 'a module has a twin of its own',
    fact: 'Desired changes reach the module and its reports stand in GET /twins/{id}/modules/{id}, not in the device’s twin.',
    run: async (fresh) => {
      const { deviceId, moduleId, client } = await connected(fresh);
      const twin = await client.getTwin();
      const steps = [];
      twin.on('properties.desired.step', (step) => steps.push(step));
      await twin.get();
      const patch = { tags: { site: 'A' }, properties: { desired: { step: 1 } } };
      const { responseBody: updated } = await registry.updateModuleTwin(deviceId, moduleId, patch, '*');
      assert.deepEqual([updated.deviceId, updated.moduleId, updated.tags], [deviceId, moduleId, { site: 'A' }]);
      await until('the module hears of it', () => steps.includes(1));
      await new Promise((resolve, reject) => {
        twin.properties.reported.update({ step: 1 }, (error) => (error ? reject(error) : resolve()));
      });
      const { responseBody: found } = await registry.getModuleTwin(deviceId, moduleId);
      assert.deepEqual([found.properties.reported.step, found.connectionState], [1, 'Connected']);
      const { responseBody: ofDevice } = await registry.getTwin(deviceId);
      assert.deepEqual([ofDevice.version, ofDevice.moduleId, ofDevice.properties.reported.step], [1, undefined, undefined]);
      const stale = registry.updateModuleTwin(deviceId, moduleId, patch, 'AAAAAAAAAAE=');
      await refused(stale, 412, 'InvalidEtagError', 'PreconditionFailed');
      await client.close();
    },
  },
  {
    name: 'a method goes to the module',
    fact: 'POST /twins/{id}/modules/{id}/methods calls the module; its device is another and is not asked.',
    run: async (fresh) => {
      const { deviceId, moduleId, client } = await connected(fresh);
      client.onMethod('turn', (request, response) => {
        response.send(201, { turned: request.payload }).catch((error) => console.error('method response:', error.message));
      });
      // The SDK subscribes in the background, and what a module sends the hub handles in order.
      await client.getTwin();
      const { result } = await invoke(deviceId, moduleId, 'turn', 2);
      assert.deepEqual([result.status, result.payload], [201, { turned: 2 }]);
      const offline = service.invokeDeviceMethod(deviceId, { methodName: 'turn', responseTimeoutInSeconds: 5 });
      await assert.rejects(offline, (error) => error.response.statusCode === 404 && error.responseBody.includes('404103'));
      await client.close();
    },
  },
  {
    name: 'a method of a module that is not there',
    fact: 'A call to a module that does not exist is 404010, to one that is away 404103.',
    run: async (fresh) => {
      const { deviceId } = await newModule(fresh);
      for (const [moduleId, code] of [['nobody', '404010'], ['lock', '404103']]) {
        await assert.rejects(invoke(deviceId, moduleId, 'turn'), (error) => {
          assert.equal(error.response.statusCode, 404);
          assert.ok(error.responseBody.includes(code), error.responseBody);
          return true;
        });
      }
    },
  },
  {
    name: 'an output of a module',
    fact: 'A module’s message is stamped with iothub-connection-module-id; its output is $.on of the bag.',
    run: async (fresh) => {
      const { deviceId, moduleId, client } = await connected(fresh);
      const message = Object.assign(new device.Message('{"bolts":2}'), { messageId: 'm1' });
      message.properties.add('colour', 'red');
      await client.sendOutputEvent('alerts', message);
      await client.sendEvent(new device.Message('plain'));
      await client.close();
      const [output, plain] = await telemetry(`${deviceId}/${moduleId}`, 2);
      const system = output.systemProperties;
      assert.deepEqual([output.deviceId, output.moduleId, output.properties.colour], [deviceId, moduleId, 'red']);
      assert.equal(system['iothub-connection-module-id'], moduleId);
      assert.equal(system['iothub-outputname'], 'alerts');
      assert.equal(system['message-id'], 'm1');
      assert.equal(JSON.parse(system['iothub-connection-auth-method']).scope, 'module');
      assert.deepEqual([plain.body, plain.systemProperties['iothub-outputname']], ['plain', undefined]);
    },
  },
  {
    name: 'a listener for inputs does no harm',
    fact: 'devices/{id}/modules/{id}/inputs/# may be subscribed to; outside of IoT Edge nothing comes.',
    run: async (fresh) => {
      const { client } = await connected(fresh);
      client.on('inputMessage', (name) => assert.fail(`an input: ${name}`));
      assert.ok((await client.getTwin()).properties.desired.$version >= 1);
      await client.close();
    },
  },
  {
    name: 'modules are queried',
    fact: 'FROM devices.modules finds module twins, FROM devices none of them.',
    run: async (fresh) => {
      const { deviceId } = await newModule(fresh);
      await addModule(deviceId, 'sensor');
      const patch = { tags: { kind: deviceId } };
      await registry.updateModuleTwin(deviceId, 'sensor', patch, '*');
      const found = await query(`SELECT * FROM devices.modules WHERE tags.kind = '${deviceId}'`);
      assert.deepEqual(found.rows.map((row) => [row.deviceId, row.moduleId]), [[deviceId, 'sensor']]);
      const all = await query(`SELECT moduleId FROM devices.modules WHERE deviceId = '${deviceId}'`, 1);
      assert.deepEqual([all.rows, all.pages], [[{ moduleId: 'lock' }, { moduleId: 'sensor' }], [1, 1]]);
      const devices = await query(`SELECT * FROM devices WHERE deviceId = '${deviceId}'`);
      assert.deepEqual(devices.rows.map((row) => row.moduleId), [undefined]);
    },
  },
  {
    name: 'a job over modules',
    fact: 'A job whose condition is FROM devices.modules WHERE … goes to modules; its rows name them.',
    run: async (fresh) => {
      const { deviceId, client } = await connected(fresh);
      await addModule(deviceId, 'sensor');
      client.onMethod('turn', (request, response) => response.send(200, request.payload, () => {}));
      await client.getTwin();
      const condition = `FROM devices.modules WHERE devices.modules.deviceId = '${deviceId}' AND moduleId = 'lock'`;
      const jobId = fresh('job');
      await jobs.scheduleDeviceMethod(jobId, condition, { methodName: 'turn', payload: 7 }, new Date(), 60);
      assert.equal((await finished(jobId)).status, 'completed');
      const [row, ...others] = await jobRows(jobId);
      assert.deepEqual([row.deviceId, row.moduleId, row.status, others.length], [deviceId, 'lock', 'completed', 0]);
      assert.deepEqual(row.outcome.deviceMethodResponse, { status: 200, payload: 7 });
      const second = fresh('job');
      const everyone = `FROM devices.modules WHERE deviceId = '${deviceId}'`;
      await jobs.scheduleTwinUpdate(second, everyone, { etag: '*', properties: { desired: { y: 1 } } }, new Date(), 60);
      assert.equal((await finished(second)).deviceJobStatistics.succeededCount, 2);
      assert.equal((await registry.getModuleTwin(deviceId, 'sensor')).responseBody.properties.desired.y, 1);
      assert.equal((await registry.getTwin(deviceId)).responseBody.properties.desired.y, undefined);
      await client.close();
    },
  },
  {
    name: 'a configuration of modules',
    fact: 'moduleContent with a target condition FROM devices.modules sets the desired properties of modules.',
    run: async (fresh) => {
      const { deviceId, moduleId } = await newModule(fresh);
      const id = fresh('configuration');
      await registry.addConfiguration({
        id,
        schemaVersion: '1.0',
        content: { moduleContent: { 'properties.desired.bolts': 2 } },
        targetCondition: `FROM devices.modules WHERE deviceId = '${deviceId}'`,
        priority: 1,
      });
      const twin = await until('the module is configured', async () => {
        const { responseBody } = await registry.getModuleTwin(deviceId, moduleId);
        return responseBody.properties.desired.bolts === 2 && responseBody;
      });
      assert.deepEqual(twin.configurations, { [id]: { status: 'Applied' } });
      await registry.removeConfiguration(id);
    },
  },
]);
