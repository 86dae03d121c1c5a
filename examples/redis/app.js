// Sessions in redis: any worker, and the next generation, knows who comes. One connection to redis for each worker,
// and no package: the protocol's commands are arrays of strings.
const http = require('http');
const net = require('net');
const { randomBytes } = require('crypto');

const at = process.env.REDIS || '127.0.0.1:6379';
const lifetime = 3600; // seconds

let socket;
const waiting = [];
let rest = '';

function connect() {
  const [host, port] = at.split(':');
  socket = net.connect(Number(port), host);
  // An open connection to redis keeps no worker from leaving.
  socket.unref();
  socket.setEncoding('latin1');
  rest = '';
  socket.on('data', (data) => {
    rest += data;
    for (;;) {
      const line = rest.indexOf('\r\n');
      if (line < 0) return;
      let end = line + 2;
      let answer = rest.slice(1, line);
      if (rest[0] === '$') {
        const length = Number(answer);
        answer = null;
        if (length >= 0) {
          if (rest.length < end + length + 2) return;
          answer = rest.slice(end, end + length);
          end += length + 2;
        }
      }
      const failed = rest[0] === '-';
      rest = rest.slice(end);
      const { resolve, reject } = waiting.shift();
      if (failed) reject(new Error(answer));
      else resolve(answer);
    }
  });
  socket.on('error', () => {});
  socket.on('close', () => {
    for (const { reject } of waiting.splice(0)) reject(new Error('redis is gone'));
    setTimeout(connect, 200).unref();
  });
}

function redis(...words) {
  return new Promise((resolve, reject) => {
    if (!socket.writable) return reject(new Error('redis is not there'));
    waiting.push({ resolve, reject });
    const strings = words.map((word) => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`);
    socket.write(`*${words.length}\r\n${strings.join('')}`);
  });
}

connect();
http
  .createServer(async (request, response) => {
    // The health of this process, and of nothing that all share: see heartbeat(1), CAVEATS.
    if (request.url === '/health') return response.end('well\n');
    try {
      const found = /(?:^|; )session=([0-9a-f]{32})(?:;|$)/.exec(request.headers.cookie || '');
      const id = found ? found[1] : randomBytes(16).toString('hex');
      const visits = await redis('INCR', `session:${id}`);
      await redis('EXPIRE', `session:${id}`, lifetime);
      response.setHeader('Set-Cookie', `session=${id}; HttpOnly; Path=/; Max-Age=${lifetime}`);
      response.end(`hello ${process.pid} visit ${visits}\n`);
    } catch (error) {
      response.statusCode = 503;
      response.end(`sessions: ${error.message}\n`);
    }
  })
  .listen(Number(process.env.PORT || 3000), process.env.HOST || '127.0.0.1');
