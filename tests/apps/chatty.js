// hello.js that writes a line for each request.
const http = require('http');

http.createServer((request, response) => {
  console.log(`${request.url} ${'x'.repeat(200)}`);
  response.end(`hello ${process.pid}\n`);
}).listen(Number(process.env.PORT), '127.0.0.1');
