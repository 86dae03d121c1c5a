// The primary that one writes with Node's own cluster: workers, respawn, and a reload on SIGUSR2 that starts the new
// workers first and disconnects the old ones when the new ones listen.
const cluster = require('cluster');

const COUNT = 2;
cluster.setupPrimary({ exec: process.argv[2] });

let serving = [];
const fork = () => {
  const worker = cluster.fork();
  serving.push(worker);
  return worker;
};
for (let i = 0; i < COUNT; i++) fork();

cluster.on('exit', (worker) => {
  if (!serving.includes(worker)) return;
  serving = serving.filter((other) => other !== worker);
  fork();
});

process.on('SIGUSR2', () => {
  const old = serving;
  serving = [];
  let waiting = COUNT;
  const listens = () => {
    if (--waiting) return;
    for (const worker of old) worker.disconnect();
    console.log('reloaded');
  };
  for (let i = 0; i < COUNT; i++) fork().once('listening', listens);
});

process.on('SIGTERM', () => {
  for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGKILL');
  process.exit(0);
});
