// Every kind of listen that an app can ask for; says what came of each, and each answers with its worker.
//   node listens.js PORT DIRECTORY      (the nine ports from PORT on)
const net = require('net');
const http = require('http');
const dgram = require('dgram');

const base = Number(process.argv[2]);
const directory = process.argv[3];
const worker = process.env.WORKER_ID;
const say = (name, error) => console.log(`L ${worker} ${name} ${error || 'ok'}`);
// Busy for a moment, so that one worker alone does not take every connection.
const busy = () => {
  const end = Date.now() + 3;
  while (Date.now() < end);
};

const listen = (name, ...how) => {
  const server = net.createServer((socket) => {
    busy();
    socket.on('error', () => {});
    socket.end(worker);
  });
  server.on('error', (error) => say(name, error.code));
  server.listen(...how, () => say(name, how[0] === 0 ? `ok:${server.address().port}` : undefined));
};
listen('any', base);
listen('v4', base + 1, '127.0.0.1', 777);
listen('v6', { port: base + 2, host: '::1' });
listen('v6only', { port: base + 3, host: '::', ipv6Only: true });
listen('zero', 0);
listen('zero2', 0);
listen('unix', `${directory}/a.sock`);
listen('unixall', { path: `${directory}/b.sock`, readableAll: true, writableAll: true });
listen('localhost', base + 4, 'localhost');
listen('foreign', base + 5, '203.0.113.9');
listen('fd3', { fd: 3 });
listen('fd99', { fd: 99 });
listen('twice', base + 1, '127.0.0.1');
listen('taken', Number(process.env.TAKEN), '127.0.0.1');
for (const [name, type, port] of [['udp4', 'udp4', base + 6], ['udp6', 'udp6', base + 7]]) {
  const socket = dgram.createSocket(type);
  socket.on('error', (error) => say(name, error.code));
  socket.on('message', (_, from) => {
    busy();
    socket.send(worker, from.port, from.address);
  });
  socket.bind(port, () => say(name));
}
http.createServer((_, response) => {
  busy();
  response.end(worker);
}).listen(base + 8, () => say('http'));
