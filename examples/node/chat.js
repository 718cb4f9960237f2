// A chat over WebSockets behind Fantail, with Node and the GRIP library. It keeps no connection and no state:
// Fantail holds the WebSockets, and posts here what the clients do.
//
// GET  /      the page
// POST /chat  WebSocket events: who opens one hears the channel `chat`; what anyone says is published to it
//
// Environment: as for app.js.

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import {
  encodeWebSocketEvents,
  getWebSocketContextFromNodeReq,
  isNodeReqWsOverHttp,
  Publisher,
  WebSocketMessageFormat,
} from '@fanoutio/grip';

const PORT = Number(process.env.PORT ?? 8000);
const publisher = new Publisher(process.env.GRIP_URL ?? 'http://127.0.0.1:5561/?verify-key=changeme');
const PAGE = new URL('../chat.html', import.meta.url);
const LONGEST = 10_000;

createServer((request, response) => {
  serve(request, response).catch((error) => {
    console.error(error);
    response.headersSent ? response.destroy() : response.writeHead(500).end();
  });
}).listen(PORT, '127.0.0.1');

async function serve(request, response) {
  if (request.method === 'GET' && request.url === '/') {
    return response.writeHead(200, { 'Content-Type': 'text/html' }).end(await readFile(PAGE));
  }
  // Anybody could post what looks like events: Fantail signs.
  const { isSigned } = await publisher.validateGripSig(request.headers['grip-sig'] ?? null);
  if (request.url !== '/chat' || !isSigned || !isNodeReqWsOverHttp(request)) {
    return response.writeHead(404).end('not found\n');
  }
  const socket = await getWebSocketContextFromNodeReq(request);
  await talk(socket);
  response.writeHead(200, socket.toHeaders()).end(encodeWebSocketEvents(socket.getOutgoingEvents()));
}

async function talk(socket) {
  if (socket.isOpening()) {
    socket.accept();
    socket.subscribe('chat');
  }
  while (socket.canRecv()) {
    const message = socket.recv();
    if (message === null) return socket.close(socket.closeCode ?? undefined);
    await publish(message);
  }
}

/** To everybody in the chat, the one who said it included. What no page would send is left out. */
async function publish(message) {
  let said;
  try {
    const { from, text } = JSON.parse(message);
    said = { from: String(from).slice(0, 40), text: String(text).slice(0, LONGEST) };
  } catch {
    return;
  }
  await publisher.publishFormats('chat', new WebSocketMessageFormat(JSON.stringify(said)));
}
