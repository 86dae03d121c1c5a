// An app that knows how to end by itself.
const http = require('http');

const server = http.createServer((_, response) => response.end(`hello ${process.pid}\n`));
server.listen(Number(process.env.PORT), '127.0.0.1');
process.on('SIGTERM', () => {
  console.log('TERM came');
  server.close(() => console.log('closed'));
});
