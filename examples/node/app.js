// A message board behind Fantail, with Node and the GRIP library.
//
// GET  /messages  a stream of server-sent events: each message as it comes
// GET  /next      a long-poll: the next message, or 204 after 20 seconds
// POST /messages  takes a message and publishes it to both
//
// Environment: PORT (8000), GRIP_URL (http://127.0.0.1:5561/?verify-key=changeme, which is Fantail's
// control port and proxy.sig_key).

import { createServer } from 'node:http';
import { GripInstruct, HttpResponseFormat, HttpStreamFormat, Publisher } from '@fanoutio/grip';

const PORT = Number(process.env.PORT ?? 8000);
const publisher = new Publisher(process.env.GRIP_URL ?? 'http://127.0.0.1:5561/?verify-key=changeme');
const LONGEST = 10_000;

createServer((request, response) => {
  serve(request, response).catch((error) => {
    console.error(error);
    response.headersSent ? response.destroy() : response.writeHead(500).end();
  });
}).listen(PORT, '127.0.0.1');

async function serve(request, response) {
  switch (`${request.method} ${request.url}`) {
    case 'GET /messages':
    case 'GET /next':
      return hold(request, response);
    case 'POST /messages':
      return take(request, response);
    default:
      response.writeHead(404).end('not found\n');
  }
}

async function hold(request, response) {
  // Without Fantail in front the request cannot be held.
  const { isSigned } = await publisher.validateGripSig(request.headers['grip-sig'] ?? null);
  if (!isSigned) {
    return response.writeHead(501).end('ask through Fantail\n');
  }
  const instruct = new GripInstruct('messages');
  if (request.url === '/messages') {
    instruct.setHoldStream();
    instruct.setKeepAlive(':\n\n', 20);
    response.writeHead(200, instruct.toHeaders({ 'Content-Type': 'text/event-stream' })).end();
  } else {
    instruct.setHoldLongPoll(20);
    response.writeHead(204, instruct.toHeaders()).end();
  }
}

async function take(request, response) {
  let text = '';
  for await (const part of request.setEncoding('utf8')) {
    text += part;
    if (text.length > LONGEST) {
      return response.writeHead(413, { Connection: 'close' }).end('too long\n');
    }
  }
  const message = JSON.stringify({ text });
  const headers = { 'Content-Type': 'application/json' };
  await publisher.publishFormats('messages', [
    new HttpStreamFormat(`data: ${message}\n\n`),
    new HttpResponseFormat({ headers, body: `${message}\n` }),
  ]);
  response.writeHead(200).end('published\n');
}
