// hello.js with fastify; found by NODE_PATH.
const app = require('fastify')();

app.get('/', async () => `hello ${process.pid}\n`);
app.get('/slow', async () => {
  await new Promise((done) => setTimeout(done, 300));
  return `hello ${process.pid}\n`;
});
app.listen({ port: Number(process.env.PORT), host: '127.0.0.1' });
