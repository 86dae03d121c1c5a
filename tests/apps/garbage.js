// Serves, and writes what is no message into its channel when it is asked to.
const fs = require('fs');
const http = require('http');

const channel = process.env.CHANNEL_FD ? Number(process.env.CHANNEL_FD) : process.channel.fd;
http.createServer((request, response) => {
  if (request.url === '/garbage') fs.writeSync(channel, 'this is no JSON\n');
  if (request.url === '/endless') {
    for (let sent = 0; sent < 4e6;) {
      try {
        sent += fs.writeSync(channel, 'x'.repeat(8192));
      } catch (error) {
        // The channel does not block; any other error means that it was closed.
        if (error.code !== 'EAGAIN') break;
      }
    }
  }
  response.end(`hello ${process.pid}\n`);
}).listen(Number(process.env.PORT), '127.0.0.1');
