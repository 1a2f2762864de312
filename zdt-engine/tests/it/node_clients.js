// Clients of Node over TLS: `ws` over HTTP/1.1, and node:http2 with WebSockets as streams (RFC 8441), an upload and a
// download on one connection. A round is written whenever all have answered rightly. Ends when standard input does.
const assert = require('node:assert');
const fs = require('node:fs');
const http2 = require('node:http2');
const { createRequire } = require('node:module');

const [port, certificate, modules] = process.argv.slice(2);
const WebSocket = createRequire(`${modules}/`)('ws');
const ca = fs.readFileSync(certificate);

const fail = (why) => { console.error(why); process.exit(1); };
process.on('unhandledRejection', fail);

// A WebSocket as a stream: one masked text frame out, one short unmasked frame back.
function open(session) {
  const stream = session.request({
    ':method': 'CONNECT', ':protocol': 'websocket', ':path': '/ws/counter', 'sec-websocket-version': '13',
  });
  let received = Buffer.alloc(0), answered;
  stream.on('data', (data) => {
    received = Buffer.concat([received, data]);
    if (received.length < 2 || received.length < 2 + received[1]) return;
    assert.strictEqual(received[0], 0x81);
    const text = received.subarray(2, 2 + received[1]);
    received = received.subarray(2 + text.length);
    answered(JSON.parse(text).n);
  });
  for (const event of ['error', 'end', 'close']) stream.on(event, () => fail(`a stream: ${event}`));
  const mask = Buffer.from([1, 2, 3, 4]), word = Buffer.from('tick').map((byte, i) => byte ^ mask[i]);
  const count = () => new Promise((resolve) => {
    answered = resolve;
    stream.write(Buffer.concat([Buffer.from([0x81, 0x80 | word.length]), mask, word]));
  });
  return new Promise((resolve) => stream.on('response', (headers) => {
    assert.strictEqual(headers[':status'], 200);
    resolve(count);
  }));
}

function ask(session, headers, body) {
  const stream = session.request(headers), parts = [];
  stream.on('data', (part) => parts.push(part));
  stream.on('error', fail);
  stream.end(body);
  return new Promise((resolve) => stream.on('end', () => resolve(Buffer.concat(parts))));
}

function dial() {
  const socket = new WebSocket(`wss://localhost:${port}/ws/counter`, { ca });
  for (const event of ['error', 'close']) socket.on(event, (what) => fail(`ws: ${event}: ${what}`));
  const count = () => new Promise((resolve) => {
    socket.once('message', (message) => resolve(JSON.parse(message).n));
    socket.send('tick');
  });
  return new Promise((resolve) => socket.on('open', () => resolve(count)));
}

(async () => {
  let ended = false;
  process.stdin.on('end', () => { ended = true; }).resume();
  const session = http2.connect(`https://localhost:${port}`, { ca });
  for (const event of ['error', 'goaway', 'close']) session.on(event, () => fail(`the session: ${event}`));
  await new Promise((resolve) => session.on('remoteSettings', resolve));
  assert.ok(session.remoteSettings.enableConnectProtocol);
  const counters = await Promise.all([...Array(5)].flatMap(() => [open(session), dial()]));
  const sent = Buffer.from(Uint8Array.from({ length: 300000 }, (_, i) => (i * 31) % 256));
  const expected = Buffer.from(Uint8Array.from({ length: 500000 }, (_, i) => i % 251));
  for (let number = 1; ; number++) {
    const [echoed, big, ...counts] = await Promise.all([
      ask(session, { ':method': 'POST', ':path': '/echo' }, sent), ask(session, { ':path': '/big?n=500000' }),
      ...counters.map((count) => count()),
    ]);
    assert.ok(sent.equals(echoed) && expected.equals(big));
    assert.deepStrictEqual(counts, counters.map(() => number));
    process.stdout.write('round\n');
    if (ended) process.exit(0);
  }
})();
