// sockjs-client, unmodified, in Node and in headless Chromium, over every transport that each of them has; the origin
// is an application of @fanoutio/grip's WebSockets over HTTP, and knows nothing of SockJS.
// Usage: node sockjs.js PATH-TO-FANTAIL
import assert from 'node:assert/strict';
import http from 'node:http';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

import { WebSocketMessageFormat, Publisher, decodeWebSocketEvents, encodeWebSocketEvents, WebSocketEvent } from '@fanoutio/grip';
import SockJS from 'sockjs-client';

import { START, browser } from './browser.js';
import { deadline, fantail, held, listen, stop } from './fantail.js';

const SCRIPT = createRequire(import.meta.url).resolve('sockjs-client/dist/sockjs.js');
const IN_NODE = ['websocket', 'xhr-streaming', 'xhr-polling', 'eventsource'];
const IN_BROWSER = ['websocket', 'xhr-streaming', 'xhr-polling', 'eventsource', 'iframe-eventsource', 'iframe-htmlfile',
  'iframe-xhr-polling', 'jsonp-polling'];
const WORDS = ['first', 'grüße ​ </script>', '"quoted" \\ \n', '\u0001'];

/** Echoes, subscribes each client to `all`, and gives pages to a browser. */
function origin(told) {
  return http.createServer((request, response) => {
    if (request.url === '/sockjs.js') return response.setHeader('Content-Type', 'text/javascript').end(readFileSync(SCRIPT));
    if (request.url.startsWith('/page')) return response.setHeader('Content-Type', 'text/html').end('<script src="/sockjs.js"></script>');
    const parts = [];
    request.on('data', (part) => parts.push(part)).on('end', () => {
      const out = [];
      for (const event of decodeWebSocketEvents(Buffer.concat(parts))) {
        const type = event.type;
        told.push(type);
        if (type === 'OPEN') out.push(event, new WebSocketEvent('TEXT', 'c:{"type":"subscribe","channel":"all"}'));
        if (type === 'TEXT') out.push(new WebSocketEvent('TEXT', 'm:' + Buffer.from(event.content).toString()));
        if (type === 'CLOSE') out.push(event);
      }
      response.setHeader('Content-Type', 'application/websocket-events');
      response.setHeader('Sec-WebSocket-Extensions', 'grip');
      response.end(Buffer.from(encodeWebSocketEvents(out)));
    });
  });
}

/** Opens, says all words, hears them and one published, is closed: what happened. Run in Node and in Chromium. */
function talk([address, transport, words]) {
  const socket = new (globalThis.SockJS)(address, null, { transports: [transport] });
  const heard = [];
  let used;
  globalThis.progress = heard;
  return new Promise((resolve) => {
    socket.onopen = () => {
      used = socket.transport;
      words.forEach((word) => socket.send(word));
    };
    socket.onmessage = ({ data }) => heard.push(data);
    socket.onclose = ({ code, reason, wasClean }) => resolve([heard, code, reason, wasClean, used]);
  });
}

async function conversation(publisher, transport, begin, progress) {
  let over;
  const result = begin().then((happened) => (over = happened));
  const missing = async (count) => {
    while ((await progress()) < count) {
      assert(!over, `${transport}: ended with ${over}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  await missing(WORDS.length);
  await publisher.publishFormats('all', new WebSocketMessageFormat('to all'));
  await missing(WORDS.length + 1);
  await publisher.publishFormats('all', new WebSocketMessageFormat(null, true, 4000));
  const [heard, code, , wasClean, used] = await result;
  assert.deepEqual(heard, [...WORDS, 'to all'], transport);
  assert.deepEqual([code, wasClean, used], [4000, true, transport]);
}

async function main() {
  const timer = deadline(2 * START);
  const told = [];
  const backend = await listen(origin(told));
  const server = await fantail([`*,sockjs=/chat ${backend},over_http`], 'sockjs_url=/sockjs.js');
  const publisher = new Publisher({ control_uri: `http://${server.control}` });
  globalThis.SockJS = SockJS;
  const address = `http://${server.client}/chat`;
  for (const transport of IN_NODE) {
    const begin = () => talk([address, transport, WORDS]);
    await conversation(publisher, transport, begin, async () => globalThis.progress.length);
  }
  // One that the client closes itself.
  const socket = new SockJS(address, null, { transports: ['xhr-streaming'] });
  await new Promise((resolve) => { socket.onopen = resolve; });
  socket.close();
  await browser(async (chromium) => {
    for (const transport of IN_BROWSER) {
      const tab = await chromium.newPage();
      await tab.goto(`http://${server.client}/page`);
      const begin = () => tab.evaluate(talk, ['/chat', transport, WORDS]);
      await conversation(publisher, transport, begin, () => tab.evaluate(() => globalThis.progress?.length ?? 0));
      await tab.close();
    }
    // A page of another origin, with cookies.
    const tab = await chromium.newPage();
    await tab.goto(`http://${backend}/page`);
    const begin = () => tab.evaluate(talk, [address, 'xhr-polling', WORDS]);
    await conversation(publisher, 'xhr-polling', begin, () => tab.evaluate(() => globalThis.progress?.length ?? 0));
  });
  while (!told.includes('DISCONNECT')) await held(server, 0, 'sockjs');
  await stop(server);
  clearTimeout(timer);
  console.log(`node: sockjs-client: ${IN_NODE.join(', ')}; in a browser ${IN_BROWSER.join(', ')}`);
  process.exit(0);
}

main();
