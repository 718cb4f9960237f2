// The Node GRIP libraries, unmodified, drive streams and long-polls through Fantail.
//
// An Express application with @fanoutio/serve-grip and a bare node:http one with @fanoutio/grip are the
// origins; both publish. Usage: node interop.js PATH-TO-FANTAIL
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import path from 'node:path';
import { createInterface } from 'node:readline';

import { GripInstruct, HttpResponseFormat, HttpStreamFormat, Publisher, validateSig } from '@fanoutio/grip';
import { ServeGrip } from '@fanoutio/serve-grip';
import express from 'express';

const KEY = 'a-key-that-is-long-enough-for-hs256-tokens';
const DEADLINE = 20_000;

const deadline = setTimeout(() => {
  console.error('not finished within the deadline');
  process.exit(1);
}, 3 * DEADLINE);

async function listen(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return `127.0.0.1:${server.address().port}`;
}

/** Starts Fantail and waits until it listens. */
async function fantail(routes) {
  const args = ['serve', '--listen', '127.0.0.1:0', '--control', '127.0.0.1:0'];
  for (const route of routes) args.push('--route', route);
  const env = { ...process.env, FANTAIL_LOG__FORMAT: 'json', FANTAIL_PROXY__SIG_KEY: KEY };
  const child = spawn(path.resolve(process.argv[2]), args, { env, stdio: ['ignore', 'pipe', 'inherit'] });
  process.on('exit', () => child.kill('SIGKILL'));
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
async function ask(address, target, options = {}) {
  const request = http.request(`http://${address}${target}`, { agent: false, ...options });
  request.end(options.body);
  const [response] = await once(request, 'response');
  return response;
}

async function text(response) {
  let all = '';
  for await (const piece of response.setEncoding('latin1')) all += piece;
  return all;
}

/** Reads until the whole of `wanted` has arrived. */
async function expect(response, wanted) {
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

/** Waits until that many long-polls are held. */
async function held(server, count) {
  for (const start = Date.now(); Date.now() - start < DEADLINE; ) {
    const page = await text(await ask(server.control, '/metrics'));
    const samples = page.split('\n').filter((l) => l.startsWith('fantail_pins{') && l.includes('kind="poll"'));
    if (samples.reduce((sum, l) => sum + Number(l.split(' ').pop()), 0) === count) return;
  }
  assert.fail(`never ${count} long-polls`);
}

/** The Express application: serve-grip as its users install it. */
function expressApplication(control) {
  const app = express();
  const serveGrip = new ServeGrip({ grip: { control_uri: control, key: KEY, verify_key: KEY }, gripProxyRequired: true });
  app.use(serveGrip);
  app.get('/stream', (req, res) => {
    const instruct = res.grip.startInstruct();
    instruct.addChannel(req.query.channel);
    instruct.setHoldStream();
    instruct.setKeepAlive('\n', 50);
    res.set('Content-Type', 'text/plain').send(`signed=${req.grip.isSigned}\n`);
  });
  app.get('/poll', (req, res) => {
    const instruct = res.grip.startInstruct();
    instruct.addChannel(req.query.channel);
    instruct.setHoldLongPoll(20);
    res.set('X-Kept', 'kept').send('nothing\n');
  });
  app.get('/plain', (req, res) => res.send(`proxied=${req.grip.isProxied}\n`));
  app.post('/publish', express.text(), async (req, res) => {
    await serveGrip.getPublisher().publishHttpStream(req.query.channel, req.body);
    res.send('posted\n');
  });
  return app;
}

/** A bare node:http application: instructs made by hand. */
async function bareApplication(req, res) {
  const valid = await validateSig(req.headers['grip-sig'] ?? '', KEY);
  const instruct = new GripInstruct(['bare', 'odd']);
  instruct.setHoldStream();
  instruct.setStatus(203);
  instruct.meta = { user: 'bob "b" \\' };
  for (const [name, value] of Object.entries(instruct.toHeaders())) res.setHeader(name, value);
  res.end(`valid=${valid}\n`);
}

async function checkStream(server, publisher) {
  const stream = await ask(server.client, '/stream?channel=s');
  assert.equal(stream.statusCode, 200);
  assert.equal(stream.headers['grip-hold'], undefined);
  await expect(stream, 'signed=true\n');
  const headers = { 'Content-Type': 'text/plain' };
  const posted = await ask(server.client, '/publish?channel=s', { method: 'POST', headers, body: 'from the app\n' });
  assert.equal(await text(posted), 'posted\n');
  await expect(stream, 'from the app\n');
  await publisher.publishHttpStream('s', new HttpStreamFormat(Buffer.from([0, 255])), '1');
  await publisher.publishHttpStream('s', 'again', '1', '0');
  await publisher.publishHttpStream('s', 'last\n', '2', '1');
  await expect(stream, '\x00\xfflast\n');
  await publisher.publishHttpStream('s', new HttpStreamFormat(null, true));
  assert.equal(await text(stream), '');
}

async function checkPoll(server, publisher) {
  const poll = ask(server.client, '/poll?channel=p');
  await held(server, 1);
  const format = new HttpResponseFormat({ code: '201', reason: 'Made', headers: { 'X-Item': '1' }, body: 'item\n' });
  await publisher.publishFormats('p', [format, new HttpStreamFormat('not for polls')], '1');
  const answer = await poll;
  assert.equal(`${answer.statusCode} ${answer.statusMessage}`, '201 Made');
  assert.equal(`${answer.headers['x-item']} ${answer.headers['x-kept']}`, '1 kept');
  assert.equal(await text(answer), 'item\n');
}

async function checkBare(server, publisher) {
  const stream = await ask(server.client, '/bare');
  assert.equal(stream.statusCode, 203);
  await expect(stream, 'valid=true\n');
  await publisher.publishHttpStream('odd', 'by hand\n');
  await expect(stream, 'by hand\n');
  stream.destroy();
}

async function main() {
  const [app, bare] = [http.createServer(), http.createServer(bareApplication)];
  const [first, second] = [await listen(app), await listen(bare)];
  const server = await fantail([`*,path_beg=/bare ${second}`, `* ${first}`]);
  const control = `http://${server.control}`;
  app.on('request', expressApplication(control));
  const publisher = new Publisher({ control_uri: control });
  assert.equal(await text(await ask(server.client, '/plain')), 'proxied=true\n');
  assert.equal((await ask(first, '/plain')).statusCode, 501, 'serve-grip wants a proxy');
  await checkStream(server, publisher);
  await checkPoll(server, publisher);
  await checkBare(server, publisher);
  server.child.kill('SIGTERM');
  const [status] = await once(server.child, 'exit');
  assert.equal(status, 0);
  clearTimeout(deadline);
  console.log('node: @fanoutio/serve-grip and @fanoutio/grip drive streams and long-polls');
  process.exit(0);
}

main();
