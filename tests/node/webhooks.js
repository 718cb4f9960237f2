// Webhooks as a receiver sees them with the public libraries, unmodified: standardwebhooks and svix verify what Fantail
// signs with a shared secret; node's own crypto verifies what it signs with a key pair.
import assert from 'node:assert/strict';
import { createPublicKey, verify } from 'node:crypto';
import http from 'node:http';
import * as standard from 'standardwebhooks';
import * as svix from 'svix';
import { deadline, fantail, listen, stop } from './fantail.js';

/** One JSON request to the control port. */
async function control(server, method, path, body) {
  const headers = { 'Content-Type': 'application/json', Accept: 'application/json' };
  const answer = await fetch(`http://${server.control}${path}`, { method, headers, body: body && JSON.stringify(body) });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
}

function refused(webhook, body, headers) {
  assert.throws(() => webhook.verify(body, headers));
}

async function main() {
  const timer = deadline();
  const got = [];
  let tell;
  const receiver = http.createServer(async (request, response) => {
    let body = '';
    for await (const part of request) body += part;
    got.push({ headers: request.headers, body });
    response.end();
    tell?.();
  });
  const address = await listen(receiver);
  const server = await fantail(['* test'], '', {
    FANTAIL_SERVER__DATA_DIR: 'data',
    FANTAIL_WEBHOOKS__ALLOW: '127.0.0.1',
  });
  const publish = async (body) => {
    const arrived = new Promise((resolve) => { tell = resolve; });
    await control(server, 'POST', '/publish/', { items: [{ channel: 'c', 'http-request': { body } }] });
    await arrived;
    return got.at(-1);
  };
  const url = `http://${address}/hook`;
  const endpoint = `/channel/c/hrq-subscription/${encodeURIComponent(url)}`;
  const { secrets } = await control(server, 'POST', '/channel/c/hrq-subscriptions/', { url });
  const first = await publish('{"n": 1}');
  for (const { Webhook } of [standard, svix]) {
    const webhook = new Webhook(secrets[0].secret);
    // svix's does not return what it has verified.
    const verified = webhook.verify(first.body, first.headers);
    assert.deepEqual(verified ?? { n: 1 }, { n: 1 });
    refused(webhook, first.body + ' ', first.headers);
    refused(webhook, first.body, { ...first.headers, 'webhook-id': 'msg_other' });
  }
  const rotated = await control(server, 'POST', `${endpoint}/secrets/`, { signature: 'ed25519', overlap: 600 });
  const second = await publish('{"n": 2}');
  // The old secret still does, beside a signature of a kind that the libraries do not know.
  assert.deepEqual(new standard.Webhook(secrets[0].secret).verify(second.body, second.headers), { n: 2 });
  const { 'webhook-id': id, 'webhook-timestamp': time, 'webhook-signature': signature } = second.headers;
  const raw = Buffer.from(rotated.secrets[0].public.slice('whpk_'.length), 'base64');
  const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: raw.toString('base64url') }, format: 'jwk' });
  const [mine] = signature.split(' ').filter((one) => one.startsWith('v1a,'));
  const content = Buffer.from(`${id}.${time}.${second.body}`);
  assert(verify(null, content, key, Buffer.from(mine.slice(4), 'base64')));
  await stop(server);
  receiver.close();
  clearTimeout(timer);
  console.log('node: standardwebhooks and svix verify webhooks');
  process.exit(0);
}

main();
