// Exercises a server through etcd3, the Node client. Prints "ok NAME" for each check and ends with 1 at the first that
// fails. Argument: the stage (basic, auth, tls or tls-auth). Environment: ENDPOINT; for TLS also CA, CERT, KEY.
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const { Etcd3, EtcdPermissionDeniedError, EtcdAuthenticationFailedError } = require('etcd3');

const open = [];

function client(options = {}) {
  const c = new Etcd3({ hosts: process.env.ENDPOINT, dialTimeout: 5000, ...options });
  open.push(c);
  return c;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const as = (username, password) => ({ auth: { username, password } });
const once = (emitter, event) => new Promise((resolve) => emitter.once(event, resolve));

async function kv() {
  const c = client();
  await c.put('node/kv/a').value('1');
  assert.strictEqual((await c.put('node/kv/a').value('2').getPrevious()).value.toString(), '1');
  await c.put('node/kv/b').value('3');
  assert.strictEqual(await c.get('node/kv/a').string(), '2');
  assert.strictEqual(await c.get('node/kv/none').string(), null);
  const keys = await c.getAll().prefix('node/kv/').sort('Key', 'Descend').keys();
  assert.deepStrictEqual(keys, ['node/kv/b', 'node/kv/a']);
  assert.strictEqual(await c.getAll().prefix('node/kv/').count(), 2);
  assert.strictEqual((await c.delete().prefix('node/kv/')).deleted, '2');
}

async function txn() {
  const c = client();
  const first = await c.if('node/txn', 'Create', '==', 0).then(c.put('node/txn').value('1')).else(c.get('node/txn')).commit();
  assert.strictEqual(first.succeeded, true);
  const second = await c.if('node/txn', 'Create', '==', 0).then(c.put('node/txn').value('2')).else(c.get('node/txn')).commit();
  assert.strictEqual(second.succeeded, false);
  assert.strictEqual(second.responses[0].response_range.kvs[0].value.toString(), '1');
}

async function stm() {
  const c = client();
  const add = () => c.stm().transact(async (tx) => tx.put('node/stm').value(`${(await tx.get('node/stm').string()) || ''}x`));
  await Promise.all([add(), add(), add()]);
  assert.strictEqual(await c.get('node/stm').string(), 'xxx');
}

async function watch() {
  const c = client();
  const watcher = await c.watch().prefix('node/watch/').withPreviousKV().create();
  const put = once(watcher, 'put');
  const gone = new Promise((resolve) => watcher.once('delete', (kv, previous) => resolve([kv, previous])));
  await c.put('node/watch/a').value('1');
  await c.delete().key('node/watch/a');
  assert.strictEqual((await put).value.toString(), '1');
  const [kv, previous] = await gone;
  assert.deepStrictEqual([kv.key.toString(), previous.value.toString()], ['node/watch/a', '1']);
  await watcher.cancel();
}

// A watcher that comes back with the revision after the last one it saw misses nothing and sees nothing twice.
async function watchResume() {
  const c = client();
  const revisions = [];
  for (let i = 0; i < 10; i++) {
    revisions.push(Number((await c.put('node/resume').value(String(i))).header.revision));
  }
  const seen = [];
  const watcher = await c.watch().key('node/resume').startRevision(String(revisions[3] + 1)).create();
  await new Promise((resolve) => {
    watcher.on('put', (kv) => {
      seen.push(kv.value.toString());
      if (seen.length === 6) resolve();
    });
  });
  assert.deepStrictEqual(seen, ['4', '5', '6', '7', '8', '9']);
  await watcher.cancel();
}

async function lease() {
  const c = client();
  const granted = c.lease(60, { autoKeepAlive: false });
  await granted.put('node/lease').value('1');
  const id = await granted.grant();
  const left = await c.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  assert.deepStrictEqual([left.grantedTTL, left.keys.map(String)], ['60', ['node/lease']]);
  await granted.revoke();
  assert.strictEqual(await c.get('node/lease').string(), null);
}

// A lease outlives its time to live while the client keeps it alive, and its keys go when that ends.
async function keepAlive() {
  const c = client();
  const kept = c.lease(2);
  await kept.put('node/alive').value('1');
  await sleep(5000);
  assert.strictEqual(await c.get('node/alive').string(), '1');
  const watcher = await c.watch().key('node/alive').create();
  const gone = once(watcher, 'delete');
  kept.release();
  assert.strictEqual((await gone).key.toString(), 'node/alive');
  await watcher.cancel();
}

async function lock() {
  const c = client();
  const first = await c.lock('node/lock').ttl(10).acquire();
  await assert.rejects(client().lock('node/lock').ttl(10).acquire(), /lock/i);
  await first.release();
  await (await client().lock('node/lock').ttl(10).acquire()).release();
}

async function election() {
  const c = client();
  const campaign = c.election('node-election', 10).campaign('me');
  await once(campaign, 'elected');
  assert.strictEqual(await client().election('node-election').leader(), 'me');
  await campaign.proclaim('still me');
  assert.strictEqual(await client().election('node-election').leader(), 'still me');
  await campaign.resign();
  assert.strictEqual(await client().election('node-election').leader(), undefined);
}

async function maintenance() {
  const c = client();
  assert.strictEqual((await c.maintenance.status()).version, '3.7.1');
  assert.strictEqual((await c.cluster.memberList({})).members.length, 1);
  assert.deepStrictEqual((await c.maintenance.alarm({ action: 'Get' })).alarms, []);
}

async function login() {
  const c = client(as('alice', "alice's password"));
  await c.put('alice/node').value('1');
  assert.strictEqual(await c.get('alice/node').string(), '1');
}

async function permissions() {
  const c = client(as('alice', "alice's password"));
  await assert.rejects(c.put('bob/node').value('1').exec(), EtcdPermissionDeniedError);
  await assert.rejects(c.get('bob/node').string(), EtcdPermissionDeniedError);
}

async function wrongPassword() {
  await assert.rejects(client(as('alice', 'wrong')).get('alice/node').string(), EtcdAuthenticationFailedError);
}

async function noUser() {
  await assert.rejects(client().get('alice/node').string(), /user name is empty/);
}

async function authManagement() {
  const root = client(as('root', "root's password"));
  const role = await root.role('node-role').create();
  await role.grant({ permission: 'Read', key: 'node/x' });
  const user = await root.user('node-user').create('first');
  await user.addRole('node-role');
  assert.deepStrictEqual((await user.roles()).map((r) => r.name), ['node-role']);
  const c = client(as('node-user', 'first'));
  assert.strictEqual(await c.get('node/x').string(), null);
  await assert.rejects(c.put('node/x').value('1').exec(), EtcdPermissionDeniedError);
  await user.delete();
  await role.delete();
}

const pem = (name) => fs.readFileSync(process.env[name]);
const certificates = () => ({ credentials: { rootCertificate: pem('CA'), privateKey: pem('KEY'), certChain: pem('CERT') } });

async function tlsKv() {
  const c = client({ hosts: `https://${process.env.ENDPOINT}`, ...certificates() });
  await c.put('node/tls').value('1');
  assert.strictEqual(await c.get('node/tls').string(), '1');
}

async function tlsWithoutCertificate() {
  const c = client({ hosts: `https://${process.env.ENDPOINT}`, credentials: { rootCertificate: pem('CA') } });
  await assert.rejects(c.get('node/tls').string());
}

async function tlsLogin() {
  const c = client({ hosts: `https://${process.env.ENDPOINT}`, ...certificates(), ...as('root', "root's password") });
  await c.put('anything').value('1');
}

const stages = {
  basic: { kv, txn, stm, watch, 'watch-resume': watchResume, lease, keepalive: keepAlive, lock, election, maintenance },
  auth: { login, permissions, 'wrong-password': wrongPassword, 'no-user': noUser, 'auth-management': authManagement },
  tls: { 'tls-kv': tlsKv, 'tls-without-certificate': tlsWithoutCertificate },
  'tls-auth': { 'tls-login': tlsLogin },
};

async function main() {
  for (const [name, check] of Object.entries(stages[process.argv[2]])) {
    try {
      await check();
    } catch (error) {
      console.log(`FAILED ${name}: ${error.stack}`);
      process.exit(1);
    }
    console.log(`ok ${name}`);
    open.splice(0).forEach((c) => c.close());
  }
  process.exit(0);
}

main();
