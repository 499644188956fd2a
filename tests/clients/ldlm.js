// A client of LDLM on grpc-js, which does the same as ldlm.go beside it, with the same words:
//
//   node ldlm.js --address HOST:PORT [flags] calls | try NAME | keep NAME
'use strict';

const fs = require('fs');
const path = require('path');
const readline = require('readline');
const { parseArgs } = require('util');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const PATIENCE_MS = 60_000;
const Code = grpc.status;

const { values: flags, positionals: words } = parseArgs({
  allowPositionals: true,
  options: {
    address: { type: 'string' }, password: { type: 'string' }, ca: { type: 'string' },
    cert: { type: 'string' }, key: { type: 'string' }, 'skip-verify': { type: 'boolean' },
  },
});
const Service = grpc.loadPackageDefinition(loader.loadSync(
  path.join(__dirname, 'ldlm.proto'),
  { keepCase: true, enums: Number, defaults: true })).ldlm.LDLM;

function fail(what, seen) {
  console.log(`failed: ${what}: ${seen instanceof Error ? seen : JSON.stringify(seen)}`);
  process.exit(1);
}

function check(what, good, seen) {
  if (!good) fail(what, seen);
  console.log('ok', what);
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function security() {
  if (!flags.ca && !flags['skip-verify']) return grpc.credentials.createInsecure();
  const read = (file) => (file ? fs.readFileSync(file) : null);
  const checks = flags['skip-verify'] ? { rejectUnauthorized: false } : {};
  return grpc.credentials.createSsl(read(flags.ca), read(flags.key), read(flags.cert), checks);
}

function metadata() {
  const made = new grpc.Metadata();
  if (flags.password !== undefined) made.set('authorization', flags.password);
  return made;
}

// A connection of its own; without the option all clients of a process share one.
class Client {
  constructor() {
    this.stub = new Service(flags.address, security(), { 'grpc.use_local_subchannel_pool': 1 });
  }

  // The call, and the promise of its answer.
  start(method, request, limitMs = PATIENCE_MS) {
    let call;
    const answer = new Promise((done, failed) => {
      call = this.stub[method](request, metadata(), { deadline: Date.now() + limitMs },
        (error, found) => (error ? failed(error) : done(found)));
    });
    answer.catch(() => {});
    return { call, answer };
  }

  ask(method, request) {
    return this.start(method, request).answer;
  }

  lock(request) { return this.ask('Lock', request); }
  tryLock(request) { return this.ask('TryLock', request); }
  unlock(name, key) { return this.ask('Unlock', { name, key }); }
  renew(name, key, lock_timeout_seconds) {
    return this.ask('Renew', { name, key, lock_timeout_seconds });
  }
}

async function lockAndUnlock(one, two) {
  const held = await one.lock({ name: 'js' });
  check('lock', held.locked && held.name === 'js' && held.key.length === 36 && !held.error, held);
  const refused = await two.tryLock({ name: 'js' });
  check('try lock', !refused.locked && !refused.error, refused);
  const wrong = await two.unlock('js', 'wrong');
  check('wrong key', !wrong.unlocked && wrong.error.code === 2
    && wrong.error.message === 'invalid lock key', wrong);
  const over = await two.lock({ name: 'js', wait_timeout_seconds: 1 });
  check('wait timeout', !over.locked && over.error.code === 3, over);
  check('unlock', (await one.unlock('js', held.key)).unlocked);
  const unknown = await one.unlock('js never', 'k');
  check('unknown', unknown.error.code === 1, unknown);
}

async function sizes(one, two) {
  for (let i = 0; i < 3; i++) {
    check('size', (await one.lock({ name: 'js sized', size: 3 })).locked);
  }
  const full = await two.tryLock({ name: 'js sized', size: 3 });
  check('full', !full.locked && !full.error, full);
  const other = await two.tryLock({ name: 'js sized' });
  check('mismatch', other.error.code === 6, other);
  const none = await two.tryLock({ name: 'js sized', size: 0 });
  check('no size', none.error.code === 7, none);
}

async function renewals(one, two) {
  const held = await one.lock({ name: 'js renewed', lock_timeout_seconds: 6 });
  const timer = setInterval(async () => {
    const renewed = await one.renew('js renewed', held.key, 6);
    if (!renewed.locked) fail('renew', renewed);
  }, 300);
  const kept = await two.lock({ name: 'js renewed', wait_timeout_seconds: 7 });
  check('renewed', !kept.locked && kept.error.code === 3, kept);
  clearInterval(timer);
  const next = await two.lock({ name: 'js renewed' });
  check('not renewed', next.locked, next);
  const late = await one.renew('js renewed', held.key, 3);
  check('late', late.error.code === 5, late);
}

async function ends(one, two) {
  const leaving = new Client();
  check('lock to leave', (await leaving.lock({ name: 'js left' })).locked);
  leaving.stub.close();
  check('left', (await two.lock({ name: 'js left' })).locked);

  const held = await one.lock({ name: 'js cancelled' });
  const cancelled = two.start('Lock', { name: 'js cancelled' });
  setTimeout(() => cancelled.call.cancel(), 500);
  const late = two.start('Lock', { name: 'js cancelled' }, 500);
  const codes = await Promise.all([cancelled, late].map(
    (each) => each.answer.then(() => 'answered', (error) => error.code)));
  check('given up', codes[0] === Code.CANCELLED && codes[1] === Code.DEADLINE_EXCEEDED, codes);
  check('unlock', (await one.unlock('js cancelled', held.key)).unlocked);
  check('nobody has it', (await one.lock({ name: 'js cancelled' })).locked);
}

async function crowd(one, two) {
  const held = await one.lock({ name: 'js crowd' });
  const waiting = Array.from({ length: 300 }, async () => {
    const mine = await two.lock({ name: 'js crowd' });
    const freed = await two.unlock('js crowd', mine.key);
    if (!mine.locked || !freed.unlocked) fail('crowd', mine);
  });
  for (let i = 0; i < 100; i++) {
    const mine = await two.lock({ name: `js beside ${i}` });
    const freed = await two.unlock(`js beside ${i}`, mine.key);
    if (!mine.locked || !freed.unlocked) fail('beside', mine);
  }
  console.log('ok beside the crowd');
  check('unlock', (await one.unlock('js crowd', held.key)).unlocked);
  await Promise.all(waiting);
  console.log('ok crowd');
}

async function oddities(one) {
  const name = 'ä'.repeat(500_000);
  const held = await one.lock({ name });
  check('long name', held.locked && held.name === name);
  check('long name unlocked', (await one.unlock(name, held.key)).unlocked);
  const same = (bytes) => bytes;
  const code = await new Promise((done) => {
    one.stub.makeUnaryRequest('/ldlm.LDLM/Foo', same, same, Buffer.alloc(0), metadata(),
      { deadline: Date.now() + PATIENCE_MS },
      (error) => done(error && `${error.code} ${error.details}`));
  });
  check('unknown method', code === '12 unknown method Foo for service ldlm.LDLM', code);
  const large = await one.lock({ name: 'x'.repeat(5_000_000) }).catch((error) => error);
  check('too large', large.code === Code.RESOURCE_EXHAUSTED, large);
}

async function attempt(name) {
  try {
    const answer = await new Client().tryLock({ name });
    console.log('locked', answer.locked);
  } catch (error) {
    console.log('status', Code[error.code], error.details);
  }
}

async function keep(name) {
  const one = new Client();
  check('lock', (await one.lock({ name })).locked);
  console.log('held');
  await new Promise((done) => readline.createInterface({ input: process.stdin }).once('line', done));
  for (const until = Date.now() + PATIENCE_MS; Date.now() < until; await sleep(100)) {
    try {
      if ((await one.tryLock({ name })).locked) {
        console.log('held again');
        return;
      }
    } catch (error) {
      if (error.code !== Code.UNAVAILABLE) fail('keep', error);
    }
  }
  fail('the server has not come back');
}

async function calls() {
  const [one, two] = [new Client(), new Client()];
  await lockAndUnlock(one, two);
  await sizes(one, two);
  await renewals(one, two);
  await ends(one, two);
  await crowd(one, two);
  await oddities(one);
  console.log('all good');
}

const tasks = { calls, try: attempt, keep };
tasks[words[0]](words[1]).then(() => process.exit(0), (error) => fail(words[0], error));
