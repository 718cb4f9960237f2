// The README's chat runs as printed, with each of its backends, and two people talk in Chromium.
//
// The commands are run in a copy of examples/, with the program instead of `cargo run` and ports that are free.
// Usage: node chat.js PATH-TO-FANTAIL PATH-TO-THE-REPOSITORY
import assert from 'node:assert/strict';
import { execSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';

import { START, browser } from './browser.js';

const DEADLINE = 120_000;

const deadline = setTimeout(() => {
  console.error('not finished within the deadline');
  process.exit(1);
}, START + 3 * DEADLINE);

/** The section's commands, in their order. */
function commands(readme) {
  const section = readme.split('\n## ').find((part) => part.startsWith('Another: a chat'));
  return [...section.matchAll(/```sh\n(.*)\n```/g)].map(([, command]) => command);
}

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

function start(command, options) {
  // A group of its own, so that what the shell starts ends with it.
  const child = spawn('sh', ['-c', command], { ...options, detached: true, stdio: ['ignore', 'ignore', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (piece) => (errors += piece));
  const stop = () => process.kill(-child.pid, 'SIGKILL');
  process.on('exit', stop);
  return async () => {
    process.off('exit', stop);
    stop();
    await once(child, 'exit');
    return errors;
  };
}

/** Waits until something listens there. */
async function listening(port) {
  for (const begun = Date.now(); Date.now() - begun < DEADLINE; ) {
    const socket = net.connect(port, '127.0.0.1');
    const event = await new Promise((resolve) => socket.on('connect', () => resolve(true)).on('error', () => resolve(false)));
    socket.destroy();
    if (event) return;
  }
  assert.fail(`nothing listens on ${port}`);
}

/** What stands in a page, once there are that many lines. A page behind another may draw no frames, so those are not waited for. */
async function heard(tab, count) {
  const said = (count) => document.querySelectorAll('#said li').length === count;
  await tab.waitForFunction(said, count, { polling: 50 }).catch(async (error) => {
    const lines = await tab.$$eval('#said li', (lines) => lines.map((line) => line.textContent));
    throw new Error(`not ${count} lines: ${JSON.stringify(lines)}`, { cause: error });
  });
  return tab.$$eval('#said li', (lines) => lines.map((line) => line.textContent));
}

async function say(tab, name, words) {
  await tab.fill('[aria-label=name]', name);
  await tab.fill('[aria-label=message]', words);
  await tab.click('button');
}

/** Two people, a curl, and a restart of the backend in the middle of it. */
async function talk(chromium, address, publish, restart) {
  const [ann, bob] = [await chromium.newPage(), await chromium.newPage()];
  let cut = 0;
  for (const tab of [ann, bob]) {
    const opened = tab.waitForEvent('websocket');
    await tab.goto(address);
    const socket = await opened;
    socket.on('close', () => (cut += 1));
    await tab.waitForFunction(() => socket.readyState === WebSocket.OPEN, null, { polling: 50 });
  }
  await say(ann, 'ann', 'hello <b>all</b>');
  for (const tab of [ann, bob]) assert.deepEqual(await heard(tab, 1), ['ann: hello <b>all</b>']);
  publish();
  for (const tab of [ann, bob]) assert.equal((await heard(tab, 2))[1], 'curl: hi');
  await restart();
  await say(bob, 'bob', 'still there');
  for (const tab of [ann, bob]) assert.equal((await heard(tab, 3))[2], 'bob: still there');
  assert.equal(cut, 0, 'nobody is cut off');
}

async function main() {
  const [binary, repository] = process.argv.slice(2).map((argument) => path.resolve(argument));
  const cwd = fs.mkdtempSync(path.join(os.tmpdir(), 'fantail-chat-'));
  fs.cpSync(path.join(repository, 'examples'), path.join(cwd, 'examples'), { recursive: true });
  const [python, node, program, curl] = commands(fs.readFileSync(path.join(repository, 'README.md'), 'utf8'));
  for (const backend of [python, node]) {
    const [client, control, origin] = [await freePort(), await freePort(), await freePort()];
    const free = (command) =>
      command.replace('7999', client).replace('5561', control).replace('8000', origin).replace('cargo run --release --', binary);
    const env = {
      ...process.env,
      PORT: origin,
      CONTROL: `http://127.0.0.1:${control}`,
      GRIP_URL: `http://127.0.0.1:${control}/?verify-key=changeme`,
      FANTAIL_SERVER__LISTEN: `127.0.0.1:${client}`,
      FANTAIL_CONTROL__LISTEN: `127.0.0.1:${control}`,
    };
    let stopBackend = start(backend, { cwd, env });
    const stopFantail = start(free(program), { cwd, env });
    await Promise.all([client, control, origin].map(listening));
    const restart = async () => {
      await stopBackend();
      stopBackend = start(backend, { cwd, env });
      await listening(origin);
    };
    const publish = () => execSync(free(curl), { cwd, stdio: 'pipe' });
    const talking = browser((chromium) => talk(chromium, `http://127.0.0.1:${client}/`, publish, restart));
    const failure = await talking.then(() => null, (error) => error);
    const logs = [await stopFantail(), await stopBackend()];
    if (failure) {
      console.error(backend, ...logs);
      throw failure;
    }
  }
  fs.rmSync(cwd, { recursive: true });
  clearTimeout(deadline);
  console.log("node: the README's chat runs as printed");
  process.exit(0);
}

main();
