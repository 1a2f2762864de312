// The tests' application for Node: like app.py. Its WebSockets count their messages, beyond the end of a process, in
// the directory $SESSIONS.
const fs = require('fs');
const path = require('path');
const { WebSocketServer } = require('ws');

const notes = fs.openSync(process.env.NOTES, 'a', 0o666);

const server = require('http').createServer((request, response) => {
  let body = '';
  request.on('data', (piece) => (body += piece));
  request.on('end', () => {
    fs.writeSync(notes, `${request.method} ${request.url}\n`);
    response.setHeader('X-Process', process.pid);
    response.end(`${request.method} ${request.url} ${body}\n`);
  });
});
server.keepAliveTimeout = 10000;

new WebSocketServer({ server, perMessageDeflate: true }).on('connection', (socket, request) => {
  const session = path.join(process.env.SESSIONS, request.headers['x-zdt-connection']);
  let count = request.headers['x-zdt-resume'] ? Number(fs.readFileSync(session)) : 0;
  socket.on('message', (text) => {
    count += 1;
    fs.writeFileSync(session, String(count));
    socket.send(`${count} ${text}`);
  });
});

server.listen(process.env.PORT, '127.0.0.1');
process.on('SIGTERM', () => server.close(() => process.exit(0)));
