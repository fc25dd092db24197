'use strict';
// Keys that are wrong, tokens of the past, devices that are unknown or disabled.

const { randomBytes } = require('node:crypto');
const { NoRetry } = require('azure-iot-common');
const {
  assert,
  connect,
  connectByToken,
  createDevice,
  event,
  hostName,
  iothub,
  main,
  registry,
  serviceString,
  token,
} = require('./support');

// The SDK calls any failure of a first connection by this name; the text behind it is the broker's own answer.
const REFUSED = { name: 'UnauthorizedError', message: /Connection refused: Not authorized/ };
const UNAUTHORIZED = { name: 'UnauthorizedError', responseBody: /IotHubUnauthorized/ };

main(async () => {
  const connectionString = await createDevice('guarded');
  const wrongKey = randomBytes(32).toString('base64');
  await deviceRefusals(connectionString, wrongKey);
  await serviceRefusals(wrongKey);
  await disabling(connectionString);
});

async function deviceRefusals(connectionString, wrongKey) {
  const key = /SharedAccessKey=(.*)$/.exec(connectionString)[1];
  const resource = `${hostName()}/devices/guarded`;
  await assert.rejects(connect(connectionString.replace(key, wrongKey)), REFUSED, 'wrong key');
  await assert.rejects(connect(connectionString.replace('guarded', 'nobody')), REFUSED, 'unknown device');
  await assert.rejects(connectByToken(token(resource, key, -60)), REFUSED, 'expired token');
  await (await connectByToken(token(resource, key, 60))).close();
  await (await connect(connectionString)).close();
}

async function serviceRefusals(wrongKey) {
  const { SharedAccessKey: key, SharedAccessKeyName: policy } = iothub.ConnectionString.parse(serviceString);
  const wrong = iothub.Registry.fromConnectionString(serviceString.replace(key, wrongKey));
  await assert.rejects(wrong.get('guarded'), UNAUTHORIZED, 'wrong key');
  const unknown = iothub.Registry.fromConnectionString(serviceString.replace(policy, 'nopolicy'));
  await assert.rejects(unknown.get('guarded'), UNAUTHORIZED, 'unknown policy');
  const expired = iothub.JobClient.fromSharedAccessSignature(token(hostName(), key, -60, policy));
  await assert.rejects(expired.getJob('any'), UNAUTHORIZED, 'expired token');
  const valid = iothub.Registry.fromSharedAccessSignature(token(hostName(), key, 60, policy));
  assert.equal((await valid.get('guarded')).responseBody.deviceId, 'guarded');
}

async function disabling(connectionString) {
  const client = await connect(connectionString);
  client.setRetryPolicy(new NoRetry());
  const gone = event(client, 'disconnect');
  const { responseBody: identity } = await registry.get('guarded');
  await registry.update({ ...identity, status: 'disabled' });
  await gone;
  // Azure's code for a disabled device is not known for certain, so only that it is refused counts.
  await assert.rejects(connect(connectionString), { name: 'UnauthorizedError' }, 'disabled device');
  await registry.update({ ...identity, status: 'enabled' });
  await (await connect(connectionString)).close();
}
