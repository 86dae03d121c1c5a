// A small server, written to run alone, that logs a numbered line before each answer: who has the answer knows that the
// line was written. Asked to, it spins for ever.
const http = require('http');

let count = 0;
const server = http.createServer((request, response) => {
  if (request.url === '/health') return void response.end('well\n');
  const answer = () => {
    count += 1;
    const out = count % 2 ? process.stdout : process.stderr;
    out.write(`line ${process.pid} ${count}\n`);
    response.end(`hello ${process.pid}\n`);
    if (request.url === '/spin') setImmediate(() => { for (;;); });
  };
  if (request.url === '/slow') setTimeout(answer, 300);
  else answer();
});
server.listen(Number(process.env.PORT || 3000), process.env.HOST || '127.0.0.1');
