// hello.js with express; found by NODE_PATH.
const app = require('express')();

app.get('/', (_, response) => response.send(`hello ${process.pid}\n`));
app.get('/slow', (_, response) => setTimeout(() => response.send(`hello ${process.pid}\n`), 300));
app.listen(Number(process.env.PORT), '127.0.0.1');
