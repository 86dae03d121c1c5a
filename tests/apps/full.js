// /full opens files until there is no descriptor left, /free closes them.
const http = require('http');
const fs = require('fs');

let held = [];
http.createServer((request, response) => {
  if (request.url === '/full') {
    try {
      for (;;) held.push(fs.openSync('/dev/null'));
    } catch (error) {
      response.end(`hello ${process.pid} ${error.code}\n`);
      return;
    }
  }
  if (request.url === '/free') {
    held.forEach((fd) => fs.closeSync(fd));
    held = [];
  }
  response.end(`hello ${process.pid}\n`);
}).listen(Number(process.env.PORT), '127.0.0.1');
