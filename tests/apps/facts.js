// What an app can know of the process that it runs in, as JSON; and the programs that it may start.
const http = require('http');
const cluster = require('cluster');
const { fork } = require('child_process');
const { Worker, isMainThread, parentPort } = require('worker_threads');

if (process.argv[2] === 'child') {
  process.send({ isWorker: cluster.isWorker, unique: process.env.NODE_UNIQUE_ID, channel: process.env.NODE_CHANNEL_FD });
  process.disconnect();
} else if (!isMainThread) {
  http.createServer((_, response) => response.end('thread')).listen(0, function () {
    parentPort.postMessage(this.address().port > 0);
  });
} else {
  if (process.send) process.send({ hello: 'anybody there?' });
  const answer = (response, what) => response.end(`${JSON.stringify(what)}\n`);
  http.createServer((request, response) => {
    if (request.url === '/child') {
      fork(__filename, ['child']).on('message', (message) => answer(response, message));
    } else if (request.url === '/thread') {
      new Worker(__filename).on('message', (message) => answer(response, { thread: message }));
    } else {
      answer(response, {
        worker: process.env.WORKER_ID,
        argv: process.execArgv,
        node_options: process.env.NODE_OPTIONS,
        left: Object.keys(process.env).filter((name) => /^(NODE_CHANNEL|NODE_UNIQUE|SPAWNWORK_(SHIM|DRAIN)|npm_config_script_shell)/.test(name)),
      });
    }
  }).listen(Number(process.env.PORT), '127.0.0.1');
}
