// The Node GRIP libraries, unmodified, drive streams, long-polls and WebSockets through Fantail.
//
// An Express application with @fanoutio/serve-grip and a bare node:http one with @fanoutio/grip are the
// origins; both publish. The WebSockets' clients are the library ws and headless Chromium. Fantail has a configuration of
// Pushpin's.
// Usage: node interop.js PATH-TO-FANTAIL
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';

import {
  GripInstruct,
  HttpResponseFormat,
  HttpStreamFormat,
  Publisher,
  validateSig,
  WebSocketMessageFormat,
} from '@fanoutio/grip';
import { ServeGrip } from '@fanoutio/serve-grip';
import express from 'express';
import { WebSocket } from 'ws';

import { START, browser } from './browser.js';
import { KEY, ask, deadline, expect, fantail, held, listen, stop, text } from './fantail.js';

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
  app.all('/socket', room);
  app.get('/plain', (req, res) => res.send(`proxied=${req.grip.isProxied}\n`));
  app.post('/send', express.text(), async (req, res) => {
    await serveGrip.getPublisher().publishFormats(req.query.channel, new WebSocketMessageFormat(req.body));
    res.send('sent\n');
  });
  app.post('/publish', express.text(), async (req, res) => {
    await serveGrip.getPublisher().publishHttpStream(req.query.channel, req.body);
    res.send('posted\n');
  });
  return app;
}

/** Echoes, counts in the meta, and does what some messages ask for. */
function room(req, res) {
  const ws = req.grip.wsContext;
  if (ws === null) return res.status(426).send('WebSockets only\n');
  const { channel } = req.query;
  if (channel === 'private') return res.status(403).send('not for you\n');
  if (ws.isOpening()) {
    ws.accept();
    ws.subscribe(channel);
    ws.meta.count = '0';
    if (req.get('Sec-WebSocket-Protocol')?.includes('room')) res.set('Sec-WebSocket-Protocol', 'room');
  }
  while (ws.canRecv()) {
    const message = ws.recvRaw();
    if (message === null) {
      ws.close(ws.closeCode ?? undefined);
      break;
    }
    ws.meta.count = String(Number(ws.meta.count) + 1);
    if (message === 'count') ws.send(ws.meta.count);
    else if (message === 'leave') (ws.unsubscribe(channel), ws.send('left'));
    else if (message === 'detach') (ws.send('on your own'), ws.detach());
    else if (message === 'close') ws.close();
    else if (message === 'close 4001') ws.close(4001);
    else if (typeof message === 'string') ws.send(message);
    else ws.sendBinary(message);
  }
  res.end();
}

/** A bare node:http application: instructs made by hand. */
async function bareApplication(req, res) {
  const valid = await validateSig(req.headers['grip-sig'] ?? '', KEY);
  const instruct = new GripInstruct(['bare', 'odd']);
  if (req.url === '/bare/poll') instruct.setHoldLongPoll(20);
  else instruct.setHoldStream();
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
  const poll = ask(server.client, '/bare/poll');
  await held(server, 1);
  await publisher.publishHttpResponse('odd', 'an answer\n');
  assert.equal(await text(await poll), 'an answer\n');
}

/** As an application finds where to publish: by a GRIP URL, of a realm with a key. */
async function checkUrl(server, control) {
  const url = (key) => `${control}/realm/acme?iss=acme&key=${key}`;
  const stream = await ask(server.client, '/bare', { headers: { Host: 'acme.example' } });
  await expect(stream, 'valid=true\n');
  await new Publisher(url(KEY)).publishHttpStream('odd', 'by URL\n');
  await expect(stream, 'by URL\n');
  const app = new ServeGrip({ grip: url(KEY) });
  await app.getPublisher().publishHttpStream('odd', 'by URL, served\n');
  await expect(stream, 'by URL, served\n');
  await assert.rejects(new Publisher(url(`not-${KEY}`)).publishHttpStream('odd', 'forged\n'));
  stream.destroy();
}

/** A WebSocket of the library ws; what comes is kept until it is asked for. */
async function opened(server, options, protocols = []) {
  const socket = new WebSocket(`ws://${server.client}/socket?channel=w`, protocols, options);
  const arrived = [];
  socket.on('message', (data, isBinary) => arrived.push(isBinary ? [...data] : String(data)));
  socket.next = async () => {
    if (arrived.length === 0) await once(socket, 'message');
    return arrived.shift();
  };
  socket.end = new Promise((resolve, reject) => {
    socket.on('close', (code, reason) => resolve(`${code} ${reason}`.trim()));
    socket.on('error', reject);
  });
  await Promise.race([once(socket, 'open'), socket.end]);
  return socket;
}

async function said(socket, ...messages) {
  const answers = [];
  for (const message of messages) {
    socket.send(message);
    answers.push(await socket.next());
  }
  return answers;
}

async function checkWebSocket(server, publisher, perMessageDeflate) {
  const publish = (...format) => publisher.publishFormats('w', new WebSocketMessageFormat(...format));
  let socket = await opened(server, { perMessageDeflate }, ['other', 'room']);
  assert.equal(socket.protocol, 'room');
  assert.equal(socket.extensions, perMessageDeflate ? 'permessage-deflate' : '');
  const texts = ['hello', '', 'grüße '.repeat(1000)];
  assert.deepEqual(await said(socket, ...texts, 'count'), [...texts, '4']);
  assert.deepEqual(await said(socket, new Uint8Array([0, 255])), [[0, 255]]);
  await publish('news '.repeat(100));
  await publish(new Uint8Array([0, 255]));
  assert.equal(await socket.next(), 'news '.repeat(100));
  assert.deepEqual(await socket.next(), [0, 255]);
  assert.deepEqual(await said(socket, 'leave'), ['left']);
  await publish('not for those who left');
  assert.deepEqual(await said(socket, 'still here'), ['still here']);
  socket.send('close 4001');
  assert.equal(await socket.end, '4001');
  socket = await opened(server, { perMessageDeflate });
  socket.send('close');
  assert.equal(await socket.end, '1000');
  socket = await opened(server, { perMessageDeflate });
  socket.close(3001);
  assert.equal(await socket.end, '3001');
  socket = await opened(server, { perMessageDeflate });
  socket.close();
  assert.equal(await socket.end, '1000');
  socket = await opened(server, { perMessageDeflate });
  assert.deepEqual(await said(socket, 'detach'), ['on your own']);
  await publish('for those who were let go');
  assert.equal(await socket.next(), 'for those who were let go');
  await publish(null, true, 4002);
  assert.equal(await socket.end, '4002');
  await held(server, 0, 'websocket');
}

async function checkRefusal(server) {
  const socket = new WebSocket(`ws://${server.client}/socket?channel=private`);
  const [, refusal] = await once(socket, 'unexpected-response');
  assert.equal(`${refusal.statusCode} ${await text(refusal)}`, '403 not for you\n');
  assert.equal((await ask(server.client, '/socket')).statusCode, 426);
}

/** What a page sees: run in Chromium. */
async function page(address) {
  const open = (protocols) => new WebSocket(`ws://${address}/socket?channel=b`, protocols);
  const next = (socket, event) => new Promise((resolve) => (socket['on' + event] = resolve));
  const facts = [];
  let socket = open(['room']);
  await next(socket, 'open');
  facts.push(socket.protocol, socket.extensions.split(';')[0]);
  socket.binaryType = 'arraybuffer';
  for (const message of ['grüße', '', new Uint8Array([0, 255]), 'x'.repeat(100_000)]) {
    socket.send(message);
    const { data } = await next(socket, 'message');
    facts.push(typeof data === 'string' ? data.length : [...new Uint8Array(data)]);
  }
  const published = next(socket, 'message');
  await fetch('/send?channel=b', { method: 'POST', body: 'from the page' });
  facts.push((await published).data);
  for (const message of ['close 4001', 'close', null]) {
    if (message === null) socket.close(3001);
    else socket.send(message);
    const { code, wasClean } = await next(socket, 'close');
    facts.push(code, wasClean);
    socket = open();
    await next(socket, 'open');
  }
  return facts;
}

async function checkBrowser(server) {
  const seen = await browser(async (chromium) => {
    const tab = await chromium.newPage();
    await tab.goto(`http://${server.client}/plain`);
    return tab.evaluate(page, server.client);
  });
  const echoed = [5, 0, [0, 255], 100_000];
  const ends = [4001, true, 1000, true, 3001, true];
  assert.deepEqual(seen, ['room', 'permessage-deflate', ...echoed, 'from the page', ...ends]);
}

async function main() {
  const timer = deadline(START);
  const [app, bare] = [http.createServer(), http.createServer(bareApplication)];
  const [first, second] = [await listen(app), await listen(bare)];
  const routes = [`*,path_beg=/bare ${second}`, `* ${first},over_http`, `acme.example,realm=acme ${second}`];
  const server = await fantail(routes, '', { FANTAIL_REALM: `[{id = "acme", keys = ["${KEY}"]}]` });
  const control = `http://${server.control}`;
  app.on('request', expressApplication(control));
  const publisher = new Publisher({ control_uri: control });
  assert.equal(await text(await ask(server.client, '/plain')), 'proxied=true\n');
  assert.equal((await ask(first, '/plain')).statusCode, 501, 'serve-grip wants a proxy');
  await checkStream(server, publisher);
  await checkPoll(server, publisher);
  await checkBare(server, publisher);
  await checkUrl(server, control);
  for (const deflate of [false, true]) await checkWebSocket(server, publisher, deflate);
  await checkRefusal(server);
  await checkBrowser(server);
  await stop(server);
  clearTimeout(timer);
  console.log('node: @fanoutio/serve-grip and @fanoutio/grip drive streams, long-polls and WebSockets');
  process.exit(0);
}

main();
