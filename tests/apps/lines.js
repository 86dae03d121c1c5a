// Numbers what it logs: each path is answered with the pid, and /log/N first writes N lines.
// Listens on PORT, and besides on the unix socket of SOCK and on UDP where these are set.
const http = require('http');

let count = 0;
const log = (lines) => {
  let text = '';
  for (let i = 0; i < lines; i += 1) {
    count += 1;
    text += `line ${process.pid} ${count}\n`;
  }
  process.stdout.write(text);
};
const handler = (request, response) => {
  const answer = () => response.end(`hello ${process.pid} ${process.env.VERSION || '-'}\n`);
  const lines = /^\/log\/([0-9]+)/.exec(request.url);
  if (lines) log(Number(lines[1]));
  if (request.url.startsWith('/slow')) setTimeout(answer, 300);
  else if (request.url.startsWith('/long')) setTimeout(() => { log(1); answer(); }, 1500);
  else answer();
};
http.createServer(handler).listen(Number(process.env.PORT), '127.0.0.1');
if (process.env.SOCK) http.createServer(handler).listen(process.env.SOCK);
if (process.env.UDP) {
  const socket = require('dgram').createSocket('udp4');
  socket.on('message', (message, from) => socket.send(message, from.port, from.address));
  socket.bind(Number(process.env.UDP), '127.0.0.1');
}
// exit: an app that ends at once on TERM, whatever it has in hand.
if (process.env.TERM_HANDLER === 'exit') {
  process.on('SIGTERM', () => {
    console.log(`TERM came to ${process.pid}`);
    process.exit(0);
  });
}
// talk: an app that tells its master something all the time.
if (process.env.TALK) setInterval(() => process.send({ hello: process.pid }), 20);
