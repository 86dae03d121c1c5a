// Worker 0 listens on ten ports, one after another, each 15 ms after the one before; says when the last
// one was there, and the longest wait between two of them. The others listen when the file `go` is there.
const net = require('net');
const fs = require('fs');

const server = () => net.createServer((socket) => socket.end());
let [last, longest] = [Date.now(), 0];
const next = (left) => server().listen(0, '127.0.0.1', () => {
  const now = Date.now();
  longest = Math.max(longest, now - last);
  last = now;
  if (left > 1) setTimeout(next, 15, left - 1);
  else console.log(`listened ${last} ${longest}`);
});
if (process.env.WORKER_ID === '0') {
  last = Date.now();
  next(10);
} else {
  const wait = setInterval(() => {
    if (!fs.existsSync('go')) return;
    clearInterval(wait);
    server().listen(0, '127.0.0.1');
  }, 20);
}
