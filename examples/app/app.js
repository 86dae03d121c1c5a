// The article's app: it knows nothing of what runs it. `node app.js` alone, `spawnwork -n 4 -- node app.js` in production.
const http = require('http');
const express = require('express');

const port = process.env.PORT || 3000;
const host = process.env.HOST || '127.0.0.1';
// How many connections may wait to be accepted. spawnwork asserts its own --backlog again.
const backlog = Number(process.env.BACKLOG || 4096);

// Connections to other servers; Node's own default is no limit since 0.12, and kept ones since 19.
http.globalAgent.maxSockets = 500;

const app = express();
app.disable('x-powered-by');
app.get('/health', (_, response) => response.send('well\n'));
app.get('/', (_, response) => response.send(`hello ${process.pid}\n`));

const server = http.createServer(app);
server.on('error', (error) => {
  // Never silently.
  const why = error.code === 'EADDRINUSE' ? 'address already in use' : error.message;
  console.error(`cannot listen on ${host}:${port}: ${why}`);
  process.exit(1);
});
// PORT may be the path of a unix socket too.
if (Number.isNaN(Number(port))) server.listen(port, backlog, listening);
else server.listen(Number(port), host, backlog, listening);

function listening() {
  console.log(`listening on ${port}`);
}
