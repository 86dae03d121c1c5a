// An app: `hello PID`, at once, or on /slow after 300 ms.
const http = require('http');

const server = http.createServer((request, response) => {
  const answer = () => response.end(`hello ${process.pid}\n`);
  if (request.url === '/slow') setTimeout(answer, 300);
  else answer();
});
server.listen(Number(process.env.PORT), '127.0.0.1');
