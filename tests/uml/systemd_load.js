// Asks both ports, again and again, each time by a new connection. On USR1 it writes its counts, and begins anew.
const fs = require('fs');
const http = require('http');
let counts;
const begin = () => {
  counts = {};
  for (const port of [3000, 3001]) counts[port] = { answered: 0, refused: 0, cut: 0 };
};
begin();
const ask = (port) => {
  let over = false;
  const next = (what) => {
    if (over) return;
    over = true;
    counts[port][what] += 1;
    setTimeout(ask, 50, port);
  };
  const request = http.get({ port, host: '127.0.0.1', agent: false }, (reply) => {
    let body = '';
    reply.on('data', (part) => { body += part; });
    reply.on('end', () => next(body.startsWith('hello ') ? 'answered' : 'cut'));
    reply.on('error', () => next('cut'));
  });
  request.on('error', (why) => next(why.code === 'ECONNREFUSED' ? 'refused' : 'cut'));
};
process.on('SIGUSR1', () => {
  const lines = Object.entries(counts).map(([port, { answered, refused, cut }]) =>
    `${port} answered=${answered} refused=${refused} cut=${cut}\n`);
  begin();
  fs.writeFileSync('/run/counted.new', lines.join(''));
  fs.renameSync('/run/counted.new', '/run/counted');
});
ask(3000);
ask(3001);
fs.writeFileSync('/run/loading', '');
