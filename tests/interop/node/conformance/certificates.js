'use strict';
// Devices that prove themselves with a certificate, by azure-iot-device, and their identities by azure-iothub.

const { X509Certificate } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { NoRetry } = require('azure-iot-common');
const { Client, Message } = require('azure-iot-device');
const { MqttWs } = require('azure-iot-device-mqtt');
const { Mqtt, assert, event, hostName, latch, onMethod, registry, service, until } = require('../support');
const { refused, suite } = require('./suite');

/** CONNACK 5, as the SDK tells it. */
const REFUSED = { name: 'UnauthorizedError', message: /Connection refused: Not authorized/ };

/** A certificate that the test has made. */
function file(name) {
  return path.join(process.env.LATCH_DATA, 'devices-of-tests', name);
}

function certificate(name) {
  return { cert: fs.readFileSync(file(`${name}.pem`), 'utf8'), key: fs.readFileSync(file(`${name}.key`), 'utf8') };
}

/** Without colons, as Azure wants thumbprints. */
function thumbprint(name, digest = 'sha256') {
  const { fingerprint, fingerprint256 } = new X509Certificate(certificate(name).cert);
  return (digest === 'sha1' ? fingerprint : fingerprint256).replaceAll(':', '');
}

async function selfSigned(deviceId, primaryThumbprint, secondaryThumbprint) {
  const x509Thumbprint = { primaryThumbprint, secondaryThumbprint };
  const { responseBody } = await registry.create({ deviceId, authentication: { type: 'selfSigned', x509Thumbprint } });
  return responseBody;
}

async function signed(deviceId) {
  const { responseBody } = await registry.create({ deviceId, authentication: { type: 'certificateAuthority' } });
  return responseBody;
}

/** A connected client of the device that shows this certificate. */
async function connect(deviceId, name, transport = Mqtt) {
  const client = Client.fromConnectionString(`HostName=${hostName()};DeviceId=${deviceId};x509=true`, transport);
  client.on('error', (error) => console.error('device client:', error.message));
  await client.setOptions(certificate(name));
  await client.open();
  return client;
}

/** Whether the device is connected now and heard in both directions. */
async function works(deviceId, client) {
  await onMethod(client, 'ping', () => ({ status: 200, payload: 'pong' }));
  const call = { methodName: 'ping', responseTimeoutInSeconds: 20 };
  assert.equal((await service.invokeDeviceMethod(deviceId, call)).result.payload, 'pong');
}

let trusted;
/** The authority of the test's factory, which all cases share. */
function trustFactory() {
  trusted ??= latch('hub', 'ca', 'add', file('factory.pem'));
  return trusted;
}

suite([
  {
    name: 'a thumbprint of SHA-1',
    fact: 'A device connects with the certificate whose SHA-1 is its primary thumbprint, whatever its common name.',
    run: async (fresh) => {
      const deviceId = fresh();
      await selfSigned(deviceId, thumbprint('own', 'sha1'));
      const client = await connect(deviceId, 'own');
      await works(deviceId, client);
      await client.close();
    },
  },
  {
    name: 'a thumbprint of SHA-256, the secondary one',
    fact: 'SHA-256 is as good as SHA-1, the secondary thumbprint as the primary, small letters as large ones.',
    run: async (fresh) => {
      const deviceId = fresh();
      await selfSigned(deviceId, thumbprint('other'), thumbprint('next').toLowerCase());
      const client = await connect(deviceId, 'next');
      await works(deviceId, client);
      await client.close();
    },
  },
  {
    name: 'a certificate by WebSocket',
    fact: 'A certificate is shown in the handshake of port 443 as in that of 8883.',
    run: async (fresh) => {
      const deviceId = fresh();
      await selfSigned(deviceId, thumbprint('own'));
      const client = await connect(deviceId, 'own', MqttWs);
      await works(deviceId, client);
      await client.close();
      await assert.rejects(connect(deviceId, 'other', MqttWs), REFUSED);
    },
  },
  {
    name: 'telemetry of a device with a certificate',
    fact: 'The built-in endpoint says of such a message that its authentication was of type x509 and scope device.',
    run: async (fresh) => {
      const deviceId = fresh();
      await selfSigned(deviceId, thumbprint('own'));
      const client = await connect(deviceId, 'own');
      await client.sendEvent(new Message('x'));
      await client.close();
      const lines = await until('the telemetry is shown', async () => {
        return (await latch('events', '--device', deviceId, '--kind', 'telemetry', '--json')).trim();
      });
      const method = JSON.parse(JSON.parse(lines).systemProperties['iothub-connection-auth-method']);
      assert.deepEqual([method.scope, method.type, method.issuer], ['device', 'x509', 'iothub']);
    },
  },
  {
    name: 'another certificate',
    fact: 'A certificate with neither of the thumbprints is CONNACK 5.',
    run: async (fresh) => {
      const deviceId = fresh();
      await selfSigned(deviceId, thumbprint('own'), thumbprint('next'));
      await assert.rejects(connect(deviceId, 'other'), REFUSED);
    },
  },
  {
    name: 'an expired certificate',
    fact: 'A certificate whose time is over is CONNACK 5, though its thumbprint is right.',
    run: async (fresh) => {
      const deviceId = fresh();
      await selfSigned(deviceId, thumbprint('expired'));
      await assert.rejects(connect(deviceId, 'expired'), REFUSED);
    },
  },
  {
    name: 'a certificate in place of a key',
    fact: 'A device with keys cannot connect with a certificate.',
    run: async (fresh) => {
      const deviceId = fresh();
      await registry.create({ deviceId });
      await assert.rejects(connect(deviceId, 'own'), REFUSED);
    },
  },
  {
    name: 'a certificate of an authority',
    fact: 'A device of type certificateAuthority connects with what a known authority has signed in its name.',
    run: async () => {
      await trustFactory();
      await signed('signed');
      const client = await connect('signed', 'signed');
      await works('signed', client);
      await client.close();
    },
  },
  {
    name: 'a certificate of an authority below',
    fact: 'A client may show those that lead from its certificate to the known authority.',
    run: async () => {
      await trustFactory();
      await signed('signed-below');
      for (const transport of [Mqtt, MqttWs]) {
        const client = await connect('signed-below', 'signed-below', transport);
        await works('signed-below', client);
        await client.close();
      }
    },
  },
  {
    name: 'a certificate of another device',
    fact: 'The common name of a signed certificate is the device’s id, or it is CONNACK 5.',
    run: async (fresh) => {
      const deviceId = fresh();
      await trustFactory();
      await signed(deviceId);
      await assert.rejects(connect(deviceId, 'signed'), REFUSED);
    },
  },
  {
    name: 'a signed certificate that has expired',
    fact: 'A signed certificate whose time is over is CONNACK 5.',
    run: async () => {
      await trustFactory();
      await signed('signed-expired');
      await assert.rejects(connect('signed-expired', 'signed-expired'), REFUSED);
    },
  },
  {
    name: 'a certificate of a stranger',
    fact: 'An authority is known by its key: one of the same name does not count.',
    run: async () => {
      await trustFactory();
      await signed('signed-elsewhere');
      await assert.rejects(connect('signed-elsewhere', 'signed-elsewhere'), REFUSED);
    },
  },
  {
    name: 'an identity with thumbprints',
    fact: 'Identity and twin show type and thumbprints as they were given, and no keys.',
    run: async (fresh) => {
      const deviceId = fresh();
      const thumbprints = [thumbprint('own', 'sha1'), thumbprint('next').toLowerCase()];
      const created = await selfSigned(deviceId, ...thumbprints);
      const { responseBody: read } = await registry.get(deviceId);
      const x509Thumbprint = { primaryThumbprint: thumbprints[0], secondaryThumbprint: thumbprints[1] };
      for (const { authentication } of [created, read]) {
        assert.equal(authentication.type, 'selfSigned');
        assert.deepEqual({ ...authentication.x509Thumbprint }, x509Thumbprint);
        assert.deepEqual({ ...authentication.symmetricKey }, { primaryKey: null, secondaryKey: null });
      }
      const { responseBody: twin } = await registry.getTwin(deviceId);
      assert.equal(twin.authenticationType, 'selfSigned');
      assert.deepEqual({ ...twin.x509Thumbprint }, x509Thumbprint);
    },
  },
  {
    name: 'an identity of an authority',
    fact: 'Identity and twin show the type certificateAuthority, neither keys nor thumbprints.',
    run: async (fresh) => {
      const deviceId = fresh();
      const { authentication } = await signed(deviceId);
      const none = { primaryThumbprint: null, secondaryThumbprint: null };
      assert.equal(authentication.type, 'certificateAuthority');
      assert.deepEqual({ ...authentication.x509Thumbprint }, none);
      assert.deepEqual({ ...authentication.symmetricKey }, { primaryKey: null, secondaryKey: null });
      const { responseBody: twin } = await registry.getTwin(deviceId);
      assert.deepEqual([twin.authenticationType, { ...twin.x509Thumbprint }], ['certificateAuthority', none]);
    },
  },
  {
    name: 'a thumbprint with colons',
    fact: 'A thumbprint is 40 or 64 hexadecimal digits without separators; anything else is 400 ArgumentInvalid.',
    run: async (fresh) => {
      const { fingerprint } = new X509Certificate(certificate('own').cert);
      for (const text of [fingerprint, 'abc']) {
        await refused(selfSigned(fresh(), text), 400, 'ArgumentError', 'ErrorCode:ArgumentInvalid');
      }
    },
  },
  {
    name: 'certificates are rolled over',
    fact: 'An update of the thumbprints counts from the next connection on.',
    run: async (fresh) => {
      const deviceId = fresh();
      const identity = await selfSigned(deviceId, thumbprint('own'));
      const client = await connect(deviceId, 'own');
      const x509Thumbprint = { primaryThumbprint: thumbprint('next'), secondaryThumbprint: null };
      await registry.update({ ...identity, authentication: { type: 'selfSigned', x509Thumbprint } });
      await works(deviceId, client);
      await client.close();
      await assert.rejects(connect(deviceId, 'own'), REFUSED);
      await (await connect(deviceId, 'next')).close();
    },
  },
  {
    name: 'a device changes to a certificate',
    fact: 'An update may change how a device proves itself: what counted before counts no more.',
    run: async (fresh) => {
      const deviceId = fresh();
      const { responseBody: identity } = await registry.create({ deviceId });
      const key = identity.authentication.symmetricKey.primaryKey;
      const x509Thumbprint = { primaryThumbprint: thumbprint('own'), secondaryThumbprint: null };
      await registry.update({ ...identity, authentication: { type: 'selfSigned', x509Thumbprint } });
      await (await connect(deviceId, 'own')).close();
      const string = `HostName=${hostName()};DeviceId=${deviceId};SharedAccessKey=${key}`;
      await assert.rejects(Client.fromConnectionString(string, Mqtt).open(), REFUSED);
    },
  },
  {
    name: 'a device with a certificate is disabled',
    fact: 'Disabling cuts the link of a device with a certificate and keeps it out.',
    run: async (fresh) => {
      const deviceId = fresh();
      const identity = await selfSigned(deviceId, thumbprint('own'));
      const client = await connect(deviceId, 'own');
      client.setRetryPolicy(new NoRetry());
      const gone = event(client, 'disconnect');
      await registry.update({ ...identity, status: 'disabled' });
      await gone;
      await assert.rejects(connect(deviceId, 'own'), REFUSED);
    },
  },
  {
    name: 'an authority is trusted no more',
    fact: 'Without its authority a certificate is CONNACK 5, until the authority is known again.',
    alone: true,
    run: async () => {
      await latch('hub', 'ca', 'remove', 'factory');
      await assert.rejects(connect('signed', 'signed'), REFUSED);
      await latch('hub', 'ca', 'add', file('factory.pem'));
      await (await connect('signed', 'signed')).close();
    },
  },
]);
