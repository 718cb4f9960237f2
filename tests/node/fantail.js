// A running Fantail with a configuration of Pushpin's, and what asks it, for the tests of libraries.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';

export const KEY = 'a-key-that-is-long-enough-for-hs256-tokens';
const DEADLINE = 20_000;

/** Ends the process with an error unless the timer that it gives is cleared in time. */
export function deadline(more = 0) {
  return setTimeout(() => {
    console.error('not finished within the deadline');
    process.exit(1);
  }, 3 * DEADLINE + more);
}

export async function listen(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return `127.0.0.1:${server.address().port}`;
}

/** Starts Fantail and waits until it listens; `more` is of its section [proxy]. */
export async function fantail(routes, more = '', environment = {}) {
  const folder = mkdtempSync(path.join(tmpdir(), 'fantail-'));
  const conf = path.join(folder, 'pushpin.conf');
  writeFileSync(conf, `[runner]\nallow_compression=true\n[proxy]\nsig_key=${KEY}\n${more}\n[handler]\nid_cache_ttl=60\n`);
  const args = ['serve', '--config', conf, '--listen', '127.0.0.1:0', '--control', '127.0.0.1:0'];
  for (const route of routes) args.push('--route', route);
  const env = { ...process.env, ...environment, FANTAIL_LOGGING__FORMAT: 'json' };
  const child = spawn(path.resolve(process.argv[2]), args, { env, stdio: ['ignore', 'pipe', 'inherit'] });
  process.on('exit', () => {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  });
  const running = { child };
  for await (const line of createInterface({ input: child.stdout })) {
    const fields = JSON.parse(line);
    if (fields.message === 'listening') Object.assign(running, { client: fields.client.split(',')[0], control: fields.control });
    if (fields.message?.endsWith('started')) break;
  }
  child.stdout.resume();
  assert(running.client, 'Fantail did not start');
  return running;
}

/** One request; resolves with the answer's head. */
export async function ask(address, target, options = {}) {
  const request = http.request(`http://${address}${target}`, { agent: false, ...options });
  request.end(options.body);
  const [response] = await once(request, 'response');
  return response;
}

export async function text(response) {
  let all = '';
  for await (const piece of response.setEncoding('latin1')) all += piece;
  return all;
}

/** Reads until the whole of `wanted` has arrived. */
export async function expect(response, wanted) {
  response.setEncoding('latin1');
  response.unread ??= '';
  while (response.unread.length < wanted.length) {
    const piece = response.read();
    if (piece === null) await Promise.race([once(response, 'readable'), once(response, 'end')]);
    else response.unread += piece;
    assert(!response.readableEnded || response.unread.length >= wanted.length, `ended after ${response.unread}`);
  }
  assert.equal(response.unread.slice(0, wanted.length), wanted);
  response.unread = response.unread.slice(wanted.length);
}

/** Waits until that many of a kind are held. */
export async function held(server, count, kind = 'poll') {
  for (const start = Date.now(); Date.now() - start < DEADLINE; ) {
    const page = await text(await ask(server.control, '/metrics'));
    const samples = page.split('\n').filter((l) => l.startsWith('fantail_pins{') && l.includes(`kind="${kind}"`));
    if (samples.reduce((sum, l) => sum + Number(l.split(' ').pop()), 0) === count) return;
  }
  assert.fail(`never ${count} of ${kind}`);
}

/** SIGTERM, and a status of 0 for it. */
export async function stop(server) {
  server.child.kill('SIGTERM');
  const [status] = await once(server.child, 'exit');
  assert.equal(status, 0);
}
