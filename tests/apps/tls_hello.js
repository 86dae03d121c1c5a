// HTTPS; says which worker served, and whether the session was a resumed one.
const fs = require('fs');
const https = require('https');

const options = { key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') };
https.createServer(options, (request, response) => {
  response.end(`${process.env.WORKER_ID} ${process.pid} ${request.socket.isSessionReused()}\n`);
}).listen(Number(process.env.PORT), '127.0.0.1');
