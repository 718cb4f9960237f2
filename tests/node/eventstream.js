// Server-sent events: @fanoutio/eventstream, unmodified, and EventSource in headless Chromium.
//
// An Express application with the library is the origin and publishes. That a browser says after a cut which event it
// has seen last, and the origin hears it, is seen at a bare origin that gives its events ids.
// Usage: node eventstream.js PATH-TO-FANTAIL
import assert from 'node:assert/strict';
import http from 'node:http';

import { EventStream } from '@fanoutio/eventstream';
import { HttpStreamFormat, Publisher } from '@fanoutio/grip';
import express from 'express';

import { START, browser } from './browser.js';
import { KEY, ask, deadline, expect, fantail, held, listen, stop } from './fantail.js';

/** Holds on the channel `ids`, and tells what each client had seen. */
function origin(lastSeen) {
  return http.createServer((request, response) => {
    lastSeen.push(request.headers['last-event-id'] ?? null);
    response.setHeader('Content-Type', 'text/event-stream');
    response.setHeader('Grip-Hold', 'stream');
    response.setHeader('Grip-Channel', 'ids');
    response.end('retry: 10\n\n');
  });
}

async function checkLibrary(server, eventStream) {
  const headers = { Accept: 'text/event-stream' };
  const stream = await ask(server.client, '/events/room', { headers });
  assert.equal(stream.headers['content-type'], 'text/event-stream');
  assert.equal(stream.headers['content-length'], undefined);
  await expect(stream, 'event: stream-open\ndata: \n\n');
  await eventStream.publishEvent('room', { event: 'message', data: { name: 'Ann\nand Bob' } });
  await expect(stream, 'event: message\ndata: {"name":"Ann\\nand Bob"}\n\n');
  const writable = eventStream.createChannelWritable('room');
  for (const number of [1, 2, 3]) writable.write({ event: 'count', data: number });
  writable.end();
  await expect(stream, [1, 2, 3].map((number) => `event: count\ndata: ${number}\n\n`).join(''));
  stream.destroy();
  assert.equal((await ask(server.client, '/events/room', { headers: { Accept: 'text/html' } })).statusCode, 406);
}

/** What `count` events of each of these types bring to a page: run in Chromium. */
function page([address, types, count]) {
  const source = new EventSource(address);
  window.events = [];
  return new Promise((resolve) => {
    for (const type of types) {
      source.addEventListener(type, ({ data, lastEventId }) => {
        window.events.push([type, data, lastEventId]);
        if (window.events.length === count) resolve(window.events);
      });
    }
  });
}

async function checkBrowser(server, eventStream, publisher, lastSeen) {
  await browser(async (chromium) => {
    const tab = await chromium.newPage();
    await tab.goto(`http://${server.client}/plain`);
    const told = tab.evaluate(page, ['/events/tab', ['stream-open', 'message'], 2]);
    await held(server, 1, 'stream');
    await eventStream.publishEvent('tab', { event: 'message', data: 'grüße' });
    assert.deepEqual(await told, [['stream-open', '', ''], ['message', '"grüße"', '']]);
    await tab.reload();
    await held(server, 0, 'stream');

    const numbered = tab.evaluate(page, ['/ids', ['message'], 2]);
    await held(server, 1, 'stream');
    await publisher.publishHttpStream('ids', 'id: 7\ndata: one\n\n');
    await tab.waitForFunction(() => window.events?.length === 1);
    await publisher.publishHttpStream('ids', new HttpStreamFormat(null, true));
    while (lastSeen.length < 2) await held(server, 1, 'stream');
    await held(server, 1, 'stream');
    await publisher.publishHttpStream('ids', 'id: 8\ndata: two\n\n');
    assert.deepEqual(await numbered, [['message', 'one', '7'], ['message', 'two', '8']]);
    assert.deepEqual(lastSeen, [null, '7']);
  });
}

async function main() {
  const timer = deadline(START);
  const lastSeen = [];
  const app = http.createServer();
  const [events, ids] = [await listen(app), await listen(origin(lastSeen))];
  const server = await fantail([`*,path_beg=/ids ${ids}`, `* ${events}`]);
  const control = `http://${server.control}`;
  const eventStream = new EventStream({ grip: { control_uri: control, key: KEY, verify_key: KEY } });
  const routes = express();
  routes.get('/events/:id', eventStream('{id}'));
  routes.get('/plain', (request, response) => response.send('a page\n'));
  app.on('request', routes);
  await checkLibrary(server, eventStream);
  await held(server, 0, 'stream');
  await checkBrowser(server, eventStream, new Publisher({ control_uri: control }), lastSeen);
  await stop(server);
  clearTimeout(timer);
  console.log('node: @fanoutio/eventstream and EventSource in a browser');
  process.exit(0);
}

main();
