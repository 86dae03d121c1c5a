// Says a lot over its channel that is nobody's business; /say answers when all of it has been sent.
const http = require('http');

const odd = [
  'text', 7, null, true, [], {}, { cmd: 1 }, { cmd: 'NODE_CLUSTER' }, { cmd: 'NODE_CLUSTER', act: 'dance' },
  { cmd: 'NODE_OTHER', seq: -1 }, { act: 'listening', port: 1 }, { hello: 'x'.repeat(100000) }, { ack: 1, accepted: false },
];
http.createServer((request, response) => {
  if (request.url !== '/say') {
    response.end(`hello ${process.pid}\n`);
    return;
  }
  let left = 100 * odd.length;
  const sent = () => {
    left -= 1;
    if (left === 0) response.end(`hello ${process.pid}\n`);
  };
  for (let round = 0; round < 100; round += 1) odd.forEach((one) => process.send(one, sent));
}).listen(Number(process.env.PORT), '127.0.0.1');
