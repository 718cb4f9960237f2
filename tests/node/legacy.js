// The GRIP libraries of npm that came before @fanoutio's, unmodified: express-grip, grip and pubcontrol.
//
// An Express application with express-grip is the origin, and a bare one with grip alone; they, grip and pubcontrol publish.
// Usage: node legacy.js PATH-TO-FANTAIL
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';

import express from 'express';
import expressGrip from 'express-grip';
import grip from 'grip';
import pubcontrol from 'pubcontrol';
import { WebSocket } from 'ws';

import { KEY, ask, deadline, expect, fantail, held, listen, stop, text } from './fantail.js';

/** As express-grip's users write it: its middleware before the routes and after them. */
function application() {
  const router = express.Router();
  router.use(expressGrip.preHandlerGripMiddleware);
  router.get('/stream', (req, res, next) => {
    expressGrip.setHoldStream(res, 'news');
    res.type('text/plain').send(`proxied=${expressGrip.isGripProxied(res)}\n`);
    next();
  });
  router.get('/poll', (req, res, next) => {
    expressGrip.setHoldLongpoll(res, ['news', new grip.Channel('more')], 20);
    res.send('nothing\n');
    next();
  });
  router.all('/socket', (req, res, next) => {
    if (!expressGrip.verifyIsWebSocket(res, next)) return;
    const ws = expressGrip.getWsContext(res);
    if (ws.isOpening()) {
      ws.accept();
      ws.subscribe('room');
    }
    while (ws.canRecv()) {
      const message = ws.recv();
      if (message === null || message === 'close') {
        ws.close();
        break;
      }
      ws.send(message);
    }
    next();
  });
  router.post('/publish', express.text(), (req, res, next) => {
    expressGrip.publish('news', new grip.HttpStreamFormat(req.body), () => {
      res.send('posted\n');
      next();
    });
  });
  router.use(expressGrip.postHandlerGripMiddleware);
  return express().use(router);
}

/** An application without a framework: what the library grip makes by itself. */
function bareApplication(request, response) {
  const parts = [];
  request.on('data', (part) => parts.push(part)).on('end', () => {
    if (request.url === '/poll') {
      response.setHeader('Content-Type', 'application/grip-instruct');
      return response.end(grip.createHoldResponse('bare', new grip.Response({ body: 'nothing\n' }), 20));
    }
    if (request.url === '/hold') {
      const valid = grip.validateSig(request.headers['grip-sig'], KEY);
      response.setHeader('Content-Type', 'application/grip-instruct');
      return response.end(grip.createHoldStream(new grip.Channel('bare'), `valid=${valid}\n`));
    }
    if (request.url === '/headers') {
      response.setHeader('Grip-Hold', 'stream');
      response.setHeader('Grip-Channel', grip.createGripChannelHeader([new grip.Channel('bare'), new grip.Channel('other')]));
      return response.end('by headers\n');
    }
    const events = [];
    for (const event of grip.decodeWebSocketEvents(Buffer.concat(parts))) {
      const control = grip.webSocketControlMessage('subscribe', { channel: 'bare' });
      if (event.getType() === 'OPEN') events.push(event, new grip.WebSocketEvent('TEXT', `c:${control}`));
      if (event.getType() === 'TEXT') events.push(new grip.WebSocketEvent('TEXT', `m:${event.getContent()}`));
      if (event.getType() === 'CLOSE') events.push(event);
    }
    response.setHeader('Content-Type', 'application/websocket-events');
    response.setHeader('Sec-WebSocket-Extensions', 'grip');
    response.end(grip.encodeWebSocketEvents(events));
  });
}

/** pubcontrol's call-back as a promise. */
function published(publisher, channel, ...formats) {
  return new Promise((resolve, reject) =>
    publisher.publish(channel, new pubcontrol.Item(formats), (success, message) => {
      if (success) resolve();
      else reject(new Error(message));
    }),
  );
}

async function checkHolds(server, publisher) {
  const stream = await ask(server.client, '/stream');
  await expect(stream, 'proxied=true\n');
  const poll = ask(server.client, '/poll');
  await held(server, 1);
  const headers = { 'Content-Type': 'text/plain' };
  const posted = await ask(server.client, '/publish', { method: 'POST', headers, body: 'from the app\n' });
  assert.equal(await text(posted), 'posted\n');
  await expect(stream, 'from the app\n');
  const answer = new grip.HttpResponseFormat(201, 'Made', { 'X-Item': '1' }, 'item\n');
  await published(publisher, 'more', answer, new grip.HttpStreamFormat('not for this stream'));
  const answered = await poll;
  assert.equal(`${answered.statusCode} ${answered.headers['x-item']} ${await text(answered)}`, '201 1 item\n');
  await published(publisher, 'news', new grip.HttpStreamFormat(null, true));
  assert.equal(await text(stream), '');
}

async function checkWebSocket(server, publisher) {
  const socket = new WebSocket(`ws://${server.client}/socket`);
  await once(socket, 'open');
  socket.send('hello');
  assert.equal(String((await once(socket, 'message'))[0]), 'hello');
  const arrived = once(socket, 'message');
  await published(publisher, 'room', new grip.WebSocketMessageFormat('to the room'));
  assert.equal(String((await arrived)[0]), 'to the room');
  socket.send('close');
  assert.equal((await once(socket, 'close'))[0], 1000, 'close() without a code');
  assert.equal((await ask(server.client, '/socket')).statusCode, 400);
}

/** `publisher`: found by a GRIP URL, for a realm with a key, as its users have it. */
async function checkBare(server, publisher) {
  const headers = { Host: 'bare.example' };
  const streams = [];
  for (const [path, first] of [['/hold', 'valid=true\n'], ['/headers', 'by headers\n']]) {
    const stream = await ask(server.client, path, { headers });
    await expect(stream, first);
    streams.push(stream);
  }
  const socket = new WebSocket(`ws://${server.client}/ws`, { headers });
  await once(socket, 'open');
  socket.send('hello');
  assert.equal(String((await once(socket, 'message'))[0]), 'hello');
  const arrived = once(socket, 'message');
  await published(publisher, 'bare', new grip.HttpStreamFormat('to all\n'), new grip.WebSocketMessageFormat('to all'));
  for (const stream of streams) await expect(stream, 'to all\n');
  assert.equal(String((await arrived)[0]), 'to all');
  socket.close(3001);
  assert.equal((await once(socket, 'close'))[0], 3001);
  const poll = ask(server.client, '/poll', { headers });
  await held(server, 1);
  await new Promise((resolve) => publisher.publishHttpResponse('bare', 'item\n', resolve));
  assert.equal(await text(await poll), 'item\n');
  for (const stream of streams) stream.destroy();
}

/** pubcontrol with a key, right and wrong. */
async function checkKeys(uri) {
  const publisher = (key) => new pubcontrol.PubControl({ uri, iss: 'acme', key });
  await published(publisher(KEY), 'nobody', new grip.HttpStreamFormat('x'));
  await assert.rejects(published(publisher(`not-${KEY}`), 'nobody', new grip.HttpStreamFormat('x')));
}

async function main() {
  const timer = deadline();
  const app = http.createServer();
  const routes = [`* ${await listen(app)},over_http`];
  routes.push(`bare.example,realm=acme ${await listen(http.createServer(bareApplication))},over_http`);
  const server = await fantail(routes, '', { FANTAIL_REALM: `[{id = "acme", keys = ["${KEY}"]}]` });
  const control = `http://${server.control}`;
  expressGrip.configure({ gripProxies: [{ control_uri: control, key: KEY }], gripProxyRequired: true });
  app.on('request', application());
  const publisher = new pubcontrol.PubControl({ uri: control });
  await checkHolds(server, publisher);
  await checkWebSocket(server, publisher);
  await checkBare(server, new grip.GripPubControl(grip.parseGripUri(`${control}/realm/acme?iss=acme&key=${KEY}`)));
  await checkKeys(`${control}/realm/acme`);
  await stop(server);
  clearTimeout(timer);
  console.log('node: express-grip, grip and pubcontrol drive streams, long-polls and WebSockets');
  process.exit(0);
}

main();
