'use strict';
// Loaded into each worker before the app. It does nothing until the worker is told to leave; then
// keep-alive connections are let go at the end of an answer, where node itself cuts them (from 19 on)
// or serves them for as long as the client likes (before).
(() => {
  const { env } = process;
  // NODE_UNIQUE_ID is deleted from the environment by now; the cluster module is loaded already.
  if (!process.send || !require('worker_threads').isMainThread || !require('cluster').isWorker) return;
  // Without a script (node -e) node is no worker, and our listeners would hold its channel for ever.
  if (!process.argv[1]) return;
  // The app's own children are to start as if we had never been.
  const option = `--require=${__filename}`;
  const options = (env.NODE_OPTIONS || '').split(' ').filter((word) => word && word !== option);
  if (options.length) env.NODE_OPTIONS = options.join(' ');
  else delete env.NODE_OPTIONS;
  const deadline = Number(env.SPAWNWORK_DRAIN_MS) || 30000;
  const idle = Math.min(2000, deadline / 2);
  delete env.SPAWNWORK_DRAIN_MS;
  // For so long a worker goes on when its master is gone; 0: nothing new can reach it then. Without the
  // variable it leaves at once.
  const alone = env.SPAWNWORK_ALONE_MS;
  delete env.SPAWNWORK_ALONE_MS;

  let draining = false;

  // A worker of a generation that is still on trial holds the sockets as if it listened, and accepts
  // nothing: libuv begins with that in listen(), so listen() is what waits.
  if (env.SPAWNWORK_HOLD) {
    delete env.SPAWNWORK_HOLD;
    const waiting = new Set();
    const hold = (message, handle) => {
      if (message && message.cmd === 'NODE_SPAWNWORK_ACCEPT') {
        process.removeListener('internalMessage', hold);
        for (const one of waiting) {
          delete one.listen;
          if (one.begun) one.listen(message.backlog);
          delete one.begun;
        }
        waiting.clear();
      } else if (message && message.cmd === 'NODE_CLUSTER' && handle && typeof handle.listen === 'function') {
        waiting.add(handle);
        handle.listen = () => {
          handle.begun = true;
          return 0;
        };
      }
    };
    process.prependListener('internalMessage', hold);
  }

  const later = (ms, what) => setTimeout(what, ms).unref();

  // Server-side connections. There is no public list of them that node 16 has too.
  function connections() {
    const seen = new Set();
    for (const handle of process._getActiveHandles()) {
      if (handle && handle.server && typeof handle.destroy === 'function') seen.add(handle);
    }
    return seen;
  }

  function http2Session(socket) {
    const symbol = Object.getOwnPropertySymbols(socket).find((s) => s.description === 'session');
    const session = symbol && socket[symbol];
    return session && typeof session.close === 'function' && 'goaway' in session ? session : undefined;
  }

  const isHttp = (socket) => socket.parser !== undefined || typeof socket.server.maxHeadersCount !== 'undefined';

  function closeIdle() {
    for (const socket of connections()) {
      if (http2Session(socket) || !isHttp(socket)) continue;
      // _httpMessage: the answer under way; bytes that came since the last one: a request under way.
      if (socket._httpMessage) continue;
      const parser = socket.parser;
      if (parser && parser.incoming && !parser.incoming.complete) continue;
      socket.destroy();
    }
  }

  function drain() {
    if (draining) return;
    draining = true;
    const http = require('http');
    const https = require('https');
    // Every answer from now on is the last one of its connection.
    const { writeHead } = http.ServerResponse.prototype;
    http.ServerResponse.prototype.writeHead = function (...args) {
      this.shouldKeepAlive = false;
      if (!this.headersSent && this.hasHeader('connection')) {
        const said = String(this.getHeader('connection')).toLowerCase();
        if (said.includes('keep-alive')) this.removeHeader('connection');
      }
      return writeHead.apply(this, args);
    };
    // close() closes idle connections at once, with requests perhaps on their way to them.
    for (const { prototype } of [http.Server, https.Server]) {
      if (!prototype.closeIdleConnections) continue;
      prototype.closeIdleConnections = () => {};
    }
    for (const socket of connections()) {
      const session = http2Session(socket);
      if (session) session.close();
    }
    later(idle, function again() {
      // What came while this process or the machine stood still is read first.
      setImmediate(() => {
        closeIdle();
        later(100, again);
      });
    });
    later(Math.max(deadline - 500, deadline * 0.8), () => {
      for (const socket of connections()) {
        const session = http2Session(socket);
        if (session) session.destroy();
        socket.destroy();
      }
    });
  }

  process.prependListener('internalMessage', (message) => {
    if (message && message.cmd === 'NODE_CLUSTER' && message.act === 'disconnect') drain();
  });

  // All servers are closed. An app that cleans up on TERM (closes its pools, stops its timers) is
  // given the occasion: by itself it would never learn that it is over.
  function closed() {
    process.removeListener('SIGTERM', leave);
    if (process.listenerCount('SIGTERM') > 0) {
      // A signal alone does not keep the event loop alive until it is delivered.
      const hold = setInterval(() => {}, 1000);
      process.prependOnceListener('SIGTERM', () => clearInterval(hold));
      process.kill(process.pid, 'SIGTERM');
    }
  }

  const servers = () => process._getActiveHandles().filter((handle) =>
    handle && typeof handle.close === 'function' && typeof handle.address === 'function' && handle.listening);

  // Without a master: what was accepted is answered, and then it is over.
  function leave() {
    if (draining) return;
    drain();
    // Before anybody else, whose patience is as long, ends it by force.
    later(Math.max(deadline - 250, deadline * 0.9), () => process.exit(0));
    const open = new Set(servers());
    for (const server of open) {
      server.once('close', () => {
        open.delete(server);
        if (open.size === 0) closed();
      });
      server.close();
    }
    if (open.size === 0) closed();
  }

  let orphan = false;
  let dismissed = false;
  if (alone !== undefined) {
    // So the next master, which has no channel to us, says that its own workers serve. The kernel ignores
    // this signal where nobody listens.
    process.on('SIGURG', () => {
      dismissed = true;
      if (orphan) leave();
    });
  }

  // An app that tells its master something is not to die of it that nobody is there, with all that it
  // has in hand: the worker object passes on what process says, and had no listener.
  const unheard = new Set(['EPIPE', 'ECONNRESET', 'ERR_IPC_CHANNEL_CLOSED', 'ERR_IPC_DISCONNECTED']);
  const self = require('cluster').worker;
  if (self) {
    self.on('error', (error) => {
      if (!unheard.has(error && error.code) && self.listenerCount('error') === 1) throw error;
    });
  }

  process.prependListener('disconnect', () => {
    const { worker } = require('cluster');
    if (draining || !worker || worker.exitedAfterDisconnect) {
      closed();
      return;
    }
    // The master is gone. Node would cut every request in flight (process.exit in child.js).
    worker.exitedAfterDisconnect = true;
    orphan = true;
    if (Number(alone) > 0 && !dismissed && servers().length > 0) {
      later(Number(alone), leave);
      // Whoever ends it by hand ends it in peace; an app with a handler does that itself.
      if (process.listenerCount('SIGTERM') === 0) process.on('SIGTERM', leave);
    } else {
      leave();
    }
  });
})();
