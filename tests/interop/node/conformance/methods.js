'use strict';
// Direct methods: invoked by azure-iothub, answered by azure-iot-device over MQTT.

const { NoRetry } = require('azure-iot-common');
const { assert, connect, createDevice, onMethod, registry, service } = require('../support');
const { refused, suite } = require('./suite');

const DEFAULTS = { responseTimeoutInSeconds: 20 };

async function device(fresh) {
  const deviceId = fresh();
  const connectionString = await createDevice(deviceId);
  const client = await connect(connectionString);
  client.setRetryPolicy(new NoRetry());
  return { deviceId, connectionString, client };
}

/** A device that answers `echo` with what it got. */
async function echo(fresh) {
  const made = await device(fresh);
  await onMethod(made.client, 'echo', (request) => ({ status: 200, payload: request.payload }));
  return made;
}

async function invoke(deviceId, methodName, options = {}) {
  const { result } = await service.invokeDeviceMethod(deviceId, { methodName, ...DEFAULTS, ...options });
  return result;
}

/** The call must fail by the envelope of methods: JSON text inside JSON, which the SDK does not read. */
async function failed(call, status, errorName, code, timeout) {
  const start = Date.now();
  await assert.rejects(call, (error) => {
    assert.deepEqual([error.response?.statusCode, error.name], [status, errorName], error.responseBody);
    const body = JSON.parse(error.responseBody);
    assert.equal(body.ExceptionMessage, '');
    const inner = JSON.parse(body.Message);
    assert.equal(inner.errorCode, code);
    assert.ok(inner.trackingId && inner.message && Number.isFinite(Date.parse(inner.timestampUtc)));
    assert.equal(inner.info?.timeout, timeout);
    return true;
  });
  return Date.now() - start;
}

suite([
  {
    name: 'any JSON is a payload',
    fact: 'The payload of a call is any JSON, and so is that of the answer.',
    run: async (fresh) => {
      const { deviceId, client } = await echo(fresh);
      const payloads = ['text', '', 'grün \u{1f6aa}', 0, -1.5, 1e300, true, [], [1, [2]], {}, { a: { b: null } }];
      for (const payload of payloads) {
        assert.deepEqual(await invoke(deviceId, 'echo', { payload }), { status: 200, payload });
      }
      await client.close();
    },
  },
  {
    name: 'no payload is null',
    fact: 'A call without a payload reaches the device as null.',
    run: async (fresh) => {
      const { deviceId, client } = await echo(fresh);
      assert.deepEqual(await invoke(deviceId, 'echo'), { status: 200, payload: null });
      await client.close();
    },
  },
  {
    name: 'an answer may have no payload',
    fact: 'An empty answer of a device is the payload null.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      await onMethod(client, 'quiet', () => ({ status: 204 }));
      assert.deepEqual(await invoke(deviceId, 'quiet'), { status: 204, payload: null });
      await client.close();
    },
  },
  {
    name: 'any integer is a status',
    fact: 'The status of an answer is any integer (the SDK sends no 0); the call is HTTP 200 whatever it is.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      await onMethod(client, 'status', (request) => ({ status: request.payload, payload: 'x' }));
      for (const status of [200, 404, 500, -1, 123456]) {
        const call = service.invokeDeviceMethod(deviceId, { methodName: 'status', payload: status, ...DEFAULTS });
        const { result, message } = await call;
        assert.deepEqual([result.status, message.statusCode], [status, 200]);
      }
      await client.close();
    },
  },
  {
    name: 'a device answers many methods',
    fact: 'One subscription serves all methods; each call goes to the handler of its name.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      await onMethod(client, 'one', () => ({ status: 1, payload: 'one' }));
      await onMethod(client, 'two', () => ({ status: 2, payload: 'two' }));
      assert.deepEqual(await invoke(deviceId, 'two'), { status: 2, payload: 'two' });
      assert.deepEqual(await invoke(deviceId, 'one'), { status: 1, payload: 'one' });
      await client.close();
    },
  },
  {
    name: 'calls beside each other are told apart',
    fact: 'Each call has a request id of its own; answers may come in any order.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      const waiting = [];
      client.onDeviceMethod('later', (request, response) => {
        waiting.push(() => response.send(200, request.payload));
        if (waiting.length === 10) waiting.reverse().forEach((answer) => answer());
      });
      await client.getTwin();
      const numbers = Array.from({ length: 10 }, (_, index) => index);
      const results = await Promise.all(numbers.map((payload) => invoke(deviceId, 'later', { payload })));
      assert.deepEqual(results.map((result) => result.payload), numbers);
      await client.close();
    },
  },
  {
    name: 'odd names reach the device',
    fact: 'A method’s name is printable ASCII without separators.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      for (const name of ['a-b_c.d', 'x*y~z!', 'A1']) {
        await onMethod(client, name, () => ({ status: 200, payload: name }));
        assert.equal((await invoke(deviceId, name)).payload, name);
      }
      await client.close();
    },
  },
  {
    name: 'a name with a separator is refused',
    fact: 'A method’s name with a blank, a slash, a question mark or another separator is 400.',
    run: async (fresh) => {
      const { deviceId, client } = await echo(fresh);
      for (const name of ['lock door', 'lock/door', 'lock?', '$lock', 'a=b', 'löck']) {
        await failed(invoke(deviceId, name), 400, 'ArgumentError', 400004);
      }
      await client.close();
    },
  },
  {
    name: 'an unknown device is not found',
    fact: 'A call to a device that is not registered is 404 DeviceNotFound.',
    run: async (fresh) => failed(invoke(fresh('nobody'), 'echo'), 404, 'Error', 404001),
  },
  {
    name: 'a device that is away is not online',
    fact: 'A call with connect time-out 0 to a device that is away is 404103 at once, with the time-out 00:00:00.',
    run: async (fresh) => {
      const deviceId = fresh();
      await createDevice(deviceId);
      await failed(invoke(deviceId, 'echo'), 404, 'Error', 404103, '00:00:00');
    },
  },
  {
    name: 'a device without the subscription is not online',
    fact: 'A connected device that has not subscribed to methods is offline for them: 404103.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      await failed(invoke(deviceId, 'echo'), 404, 'Error', 404103, '00:00:00');
      await client.close();
    },
  },
  {
    name: 'a call may wait for the device',
    fact: 'A call with a connect time-out reaches a device that connects in time.',
    run: async (fresh) => {
      const deviceId = fresh();
      const connectionString = await createDevice(deviceId);
      const call = invoke(deviceId, 'echo', { payload: 'late', connectTimeoutInSeconds: 20 });
      const client = await connect(connectionString);
      await onMethod(client, 'echo', (request) => ({ status: 200, payload: request.payload }));
      assert.deepEqual(await call, { status: 200, payload: 'late' });
      await client.close();
    },
  },
  {
    name: 'a call does not wait for ever for the device',
    fact: 'When the connect time-out has passed, the call is 404103 with that time-out.',
    run: async (fresh) => {
      const deviceId = fresh();
      await createDevice(deviceId);
      const took = await failed(invoke(deviceId, 'echo', { connectTimeoutInSeconds: 1 }), 404, 'Error', 404103, '00:00:01');
      assert.ok(took >= 950, `${took} ms`);
    },
  },
  {
    name: 'a silent device is a gateway time-out',
    fact: 'A device that does not answer within the response time-out is 504101 with that time-out.',
    run: async (fresh) => {
      const { deviceId, client } = await echo(fresh);
      const call = invoke(deviceId, 'unheard', { responseTimeoutInSeconds: 5 });
      const took = await failed(call, 504, 'GatewayTimeoutError', 504101, '00:00:05');
      assert.ok(took >= 4_950, `${took} ms`);
      await client.close();
    },
  },
  {
    name: 'a late answer is dropped',
    fact: 'An answer after the time-out reaches nobody, and the next call gets its own.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      const late = [];
      client.onDeviceMethod('slow', (request, response) => late.push(response));
      await onMethod(client, 'echo', (request) => ({ status: 200, payload: request.payload }));
      await failed(invoke(deviceId, 'slow', { responseTimeoutInSeconds: 5 }), 504, 'GatewayTimeoutError', 504101, '00:00:05');
      await late[0].send(200, 'too late');
      assert.deepEqual(await invoke(deviceId, 'echo', { payload: 'next' }), { status: 200, payload: 'next' });
      await client.close();
    },
  },
  {
    name: 'time-outs have ranges',
    fact: 'responseTimeoutInSeconds is within 5 and 300, connectTimeoutInSeconds within 0 and 300; else 400004 with that text.',
    run: async (fresh) => {
      const { deviceId, client } = await echo(fresh);
      for (const [option, value, text] of [
        ['responseTimeoutInSeconds', 4, 'responseTimeoutInSeconds must be within [5; 300].'],
        ['responseTimeoutInSeconds', 301, 'responseTimeoutInSeconds must be within [5; 300].'],
        ['connectTimeoutInSeconds', 301, 'connectTimeoutInSeconds must be within [0; 300].'],
      ]) {
        await assert.rejects(invoke(deviceId, 'echo', { [option]: value }), (error) => {
          assert.deepEqual([error.name, error.response.statusCode], ['ArgumentError', 400]);
          assert.equal(JSON.parse(JSON.parse(error.responseBody).Message).message, text);
          return true;
        });
      }
      await invoke(deviceId, 'echo', { responseTimeoutInSeconds: 300, connectTimeoutInSeconds: 300 });
      await client.close();
    },
  },
  {
    name: 'a payload has 128 KiB',
    fact: 'A payload has at most 128 KiB in each direction; a larger one of the caller is 413001.',
    run: async (fresh) => {
      const { deviceId, client } = await echo(fresh);
      // Two quotation marks.
      const payload = 'x'.repeat(128 * 1024 - 2);
      assert.equal((await invoke(deviceId, 'echo', { payload })).payload.length, payload.length);
      await assert.rejects(invoke(deviceId, 'echo', { payload: `${payload}y` }), (error) => {
        assert.equal(error.response.statusCode, 413);
        assert.equal(JSON.parse(JSON.parse(error.responseBody).Message).errorCode, 413001);
        return true;
      });
      await client.close();
    },
  },
  {
    name: 'a device that leaves during a call',
    fact: 'A call whose device’s link ends is 404104 at once; it is not sent again.',
    run: async (fresh) => {
      const { deviceId, connectionString, client } = await device(fresh);
      let calls = 0;
      client.onDeviceMethod('hold', () => {
        calls += 1;
        client.close();
      });
      await client.getTwin();
      await failed(invoke(deviceId, 'hold', { responseTimeoutInSeconds: 60 }), 404, 'Error', 404104);
      const again = await connect(connectionString);
      again.onDeviceMethod('hold', () => (calls += 1));
      await again.getTwin();
      assert.equal(calls, 1);
      await again.close();
    },
  },
  {
    name: 'a device that connects elsewhere during a call',
    fact: 'A call on a link that another connection of the device takes over is 400027 at once.',
    run: async (fresh) => {
      const { deviceId, connectionString, client } = await device(fresh);
      const begun = new Promise((resolve) => client.onDeviceMethod('hold', resolve));
      await client.getTwin();
      const call = failed(invoke(deviceId, 'hold', { responseTimeoutInSeconds: 60 }), 400, 'ArgumentError', 400027);
      await begun;
      const second = await connect(connectionString);
      await call;
      await second.close();
    },
  },
  {
    name: 'a device that is disabled during a call',
    fact: 'Disabling a device ends its link and the calls on it.',
    run: async (fresh) => {
      const { deviceId, client } = await device(fresh);
      const begun = new Promise((resolve) => client.onDeviceMethod('hold', resolve));
      await client.getTwin();
      const call = failed(invoke(deviceId, 'hold', { responseTimeoutInSeconds: 60 }), 404, 'Error', 404104);
      await begun;
      await registry.update({ deviceId, status: 'disabled' });
      await call;
    },
  },
  {
    name: 'a device that is deleted while a call waits',
    fact: 'Deleting a device ends the calls that wait for it with 404 DeviceNotFound.',
    run: async (fresh) => {
      const deviceId = fresh();
      await createDevice(deviceId);
      const call = failed(invoke(deviceId, 'echo', { connectTimeoutInSeconds: 60 }), 404, 'Error', 404001);
      // Nothing tells that the call has begun to wait; if it has not, it finds no device either.
      await registry.delete(deviceId);
      await call;
    },
  },
  {
    name: 'the subscription outlives the connection',
    fact: 'With CleanSession 0 a device that comes back gets calls before it subscribes again.',
    run: async (fresh) => {
      const { deviceId, connectionString, client } = await echo(fresh);
      await client.close();
      const again = await connect(connectionString);
      // The SDK would subscribe for a handler; with none it hears the call and stays silent, so the call is not 404103.
      const call = invoke(deviceId, 'echo', { responseTimeoutInSeconds: 5 });
      await failed(call, 504, 'GatewayTimeoutError', 504101, '00:00:05');
      await again.close();
    },
  },
]);
