// The same small server as an ES module.
import { createServer } from 'node:http';

const server = createServer((request, response) => response.end(`hello ${process.pid}\n`));
await new Promise((done) => server.listen(Number(process.env.PORT), '127.0.0.1', done));
