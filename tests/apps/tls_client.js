// Forty connections with the session of the first one: the lines that the server answers.
const tls = require('tls');

const port = Number(process.argv[2]);
const once = (session) => new Promise((done, fail) => {
  let text = '';
  let ticket = session;
  const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, maxVersion: 'TLSv1.2', session }, () => {
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
  });
  socket.on('session', (fresh) => { ticket = ticket || fresh; });
  socket.on('data', (data) => { text += data; });
  socket.on('error', fail);
  socket.on('close', () => done([text, ticket]));
});
(async () => {
  const [, session] = await once();
  const all = await Promise.all(Array.from({ length: 40 }, () => once(session)));
  for (const [text] of all) console.log(text.split('\r\n\r\n')[1].match(/\d+ \d+ \w+/)[0]);
})();
