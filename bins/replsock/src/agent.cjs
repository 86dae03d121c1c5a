// The part of replsock that lives in a Node process (16 to 26). Loaded by --require, before the app, or
// evaluated through the inspector (--inject). It must not be felt: everything is unref'd, has an error
// handler, and is bounded; nothing is written to stdout or stderr; what costs is loaded at its first use.
'use strict';
(function replsock(require, given) {
  const AGENT = Symbol.for('replsock.agent');
  const { env } = process;
  if (globalThis[AGENT] || process.platform !== 'linux') return;

  // ---- what we were told ----
  let settings = given;
  if (!settings) {
    // Programs that only start the app: their children are meant.
    const script = String(process.argv[1] || '').split('/').pop();
    if (/^(npm|npx|yarn|yarnpkg|pnpm|pnpx|corepack|nodemon|tsx)(-cli)?(\.[cm]?js)?$/.test(script)) return;
    try {
      settings = JSON.parse(env.REPLSOCK_AGENT);
    } catch {
      return;
    }
  }
  const told = env.REPLSOCK_AGENT;
  forget();
  // The app's threads are not meant. They may not change the directory, which is marked (in Node 16 to 26, measured);
  // to ask worker_threads would cost half a megabyte in each process. Unmarked, umask() below throws there.
  if (process.chdir.disabled) return;

  const fs = require('fs');
  const path = require('path');
  const app = String(settings.app);
  const worker = /^\d+$/.test(env.WORKER_ID || '') ? Number(env.WORKER_ID) : null;
  const generation = /^\d+$/.test(env.SPAWNWORK_GENERATION || '') ? Number(env.SPAWNWORK_GENERATION) : null;

  // The app's children are not meant: they get neither our variable nor our --require.
  function forget() {
    delete env.REPLSOCK_AGENT;
    if (!settings.option || !env.NODE_OPTIONS) return;
    const rest = env.NODE_OPTIONS.split(settings.option).join(' ').trim();
    if (rest) env.NODE_OPTIONS = rest;
    else delete env.NODE_OPTIONS;
  }

  // ---- where ----
  function own(directory) {
    fs.mkdirSync(directory, { recursive: true, mode: 0o700 });
    const found = fs.lstatSync(directory);
    const uid = process.geteuid();
    if (!found.isDirectory() || (found.uid !== uid && found.uid !== 0) || (found.mode & 0o022 && !(found.mode & 0o1000))) {
      throw new Error('not ours alone');
    }
    fs.accessSync(directory, fs.constants.W_OK);
    return directory;
  }
  function home() {
    try {
      own(settings.dir);
      return own(path.join(settings.dir, app));
    } catch {
      // The user was changed on the way here (spawnwork -u): what was root's is not ours.
      const mine = `/tmp/replsock-${process.geteuid()}`;
      own(mine);
      return own(path.join(mine, app));
    }
  }
  let directory;
  try {
    directory = home();
  } catch {
    return;
  }

  // ---- the socket ----
  const net = require('net');
  const clients = new Set();
  const MOST_CLIENTS = 256;
  // Of those that come besides, so many are told why they are turned away, and each of them at once.
  const MOST_TOLD = 16;
  let told_off = 0;
  function turn_away(socket) {
    socket.on('error', () => {});
    if (told_off >= MOST_TOLD) return socket.destroy();
    told_off += 1;
    const enough = setTimeout(() => socket.destroy(), 1000);
    enough.unref();
    socket.once('close', () => {
      clearTimeout(enough);
      told_off -= 1;
    });
    socket.once('data', (bytes) => {
      const text = `it is busy: ${MOST_CLIENTS} clients are there already`;
      const said = bytes[0] === 0 ? frame(KINDS.ERROR, Buffer.from(`\x7d${text}`)) : Buffer.from(`${text}\n`);
      socket.end(said, () => socket.destroy());
    });
    return undefined;
  }
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.unref();
    if (clients.size >= MOST_CLIENTS) turn_away(socket);
    else clients.add(new Client(socket));
  });
  server.unref();
  let sockname = '';
  let bound = '';
  let inode = 0;
  let attempt = 0;
  server.on('error', () => {});
  // An address holds 107 bytes (unix(7)).
  let opened = null;
  function reach(file) {
    if (Buffer.byteLength(file) <= 107) return file;
    if (opened === null) opened = fs.openSync(directory, 'r');
    return `/proc/self/fd/${opened}/${path.basename(file)}`;
  }
  // Bound under a name that nobody else has: with its handle libuv removes the name that was bound, whoever
  // it belongs to by then.
  function listen() {
    bound = path.join(directory, `${process.pid}.sock.${Math.random().toString(36).slice(2, 10)}`);
    let before;
    try {
      before = process.umask(0o177);
      // Exclusive: in a cluster's worker it would be the primary's socket, and shared by all.
      server.listen({ path: reach(bound), exclusive: true });
    } catch {
    } finally {
      if (before !== undefined) process.umask(before);
    }
    // Node's own cluster refs it again while it binds.
    server.unref();
    // At once: the app may be busy from its first line on.
    if (!server.listening) return;
    try {
      inode = fs.lstatSync(bound).ino;
    } catch {}
    name_it();
  }
  function name_it() {
    sockname = path.join(directory, `${process.pid}${attempt ? `-${attempt}` : ''}.sock`);
    try {
      fs.linkSync(bound, sockname);
      fs.unlinkSync(bound);
    } catch (why) {
      if (why.code === 'EEXIST') return taken(sockname);
      // A file system without hard links.
      try {
        fs.renameSync(bound, sockname);
      } catch {}
    }
    return undefined;
  }
  // Left behind by a process of our number; or one in another pid namespace has it, and lives.
  function taken(stale) {
    if (attempt > 8) return;
    const probe = net.connect(reach(stale));
    probe.unref();
    probe.on('connect', () => {
      probe.destroy();
      attempt += 1;
      name_it();
    });
    probe.on('error', (refused) => {
      if (refused.code === 'ECONNREFUSED') {
        try {
          fs.unlinkSync(stale);
        } catch {}
      } else attempt += 1;
      name_it();
    });
  }
  listen();
  // Who cleans up /tmp may have removed it: then it is made again.
  const LOOK_MS = 30000;
  setInterval(() => {
    fs.lstat(sockname, (why, found) => {
      if (why ? why.code !== 'ENOENT' : found.ino === inode) return;
      try {
        server.close();
        if (opened !== null) fs.closeSync(opened);
        opened = null;
        attempt = 0;
        directory = home();
        listen();
      } catch {}
    });
  }, LOOK_MS).unref();
  process.on('exit', () => {
    try {
      if (inode && fs.lstatSync(sockname).ino === inode) fs.unlinkSync(sockname);
    } catch {}
  });

  // ---- does it drain? ----
  // Only where the app listens for TERM itself: otherwise our listener would keep it alive.
  let told_to_stop = false;
  const stopping = () => {
    told_to_stop = true;
  };
  process.on('newListener', (name, listener) => {
    if (name === 'SIGTERM' && listener !== stopping && !process.listeners('SIGTERM').includes(stopping)) {
      process.prependListener('SIGTERM', stopping);
    }
    // Node's cluster sets itself up: its workers shall be reached, too.
    if (name === 'internalMessage' && told) lend_to_workers();
  });
  process.on('removeListener', (name, listener) => {
    if (name !== 'SIGTERM' || listener === stopping) return;
    if (process.listeners('SIGTERM').every((one) => one === stopping)) {
      process.removeListener('SIGTERM', stopping);
    }
  });
  function draining() {
    if (told_to_stop) return true;
    if (!env.NODE_UNIQUE_ID && !process.channel && worker === null) return false;
    try {
      const { worker: own_worker } = require('cluster');
      return Boolean(own_worker && (own_worker.exitedAfterDisconnect || !process.connected));
    } catch {
      return false;
    }
  }

  // Our variables, for as long as a worker is forked. The first fork sets the cluster up (newListener above)
  // before it copies the environment.
  let lent = false;
  function lend_to_workers() {
    if (lent) return;
    lent = true;
    const give = () => {
      const { NODE_OPTIONS } = env;
      env.REPLSOCK_AGENT = told;
      env.NODE_OPTIONS = NODE_OPTIONS ? `${NODE_OPTIONS} ${settings.option}` : settings.option;
    };
    try {
      const cluster = require('cluster');
      if (!cluster.isMaster || typeof cluster.fork !== 'function') return;
      const { fork } = cluster;
      cluster.fork = function (...words) {
        give();
        try {
          return fork.apply(this, words);
        } finally {
          forget();
        }
      };
      require('module').syncBuiltinESMExports();
    } catch {}
    give();
    process.nextTick(forget);
  }

  // ---- evaluation ----
  const util = require('util');
  let session = null;
  let count = 0;
  let slot; // the value on its way to be shown
  let order; // how
  let recent = false; // an evaluation was in this turn of the loop

  function post(method, parameters, done) {
    if (!session) {
      const { Session } = require('inspector');
      session = new Session();
      session.connect();
    }
    session.post(method, parameters, done || (() => {}));
  }

  const main_require = () => {
    const { createRequire } = require('module');
    let from = process.mainModule && process.mainModule.filename;
    if (!from && process.argv[1]) {
      try {
        from = fs.realpathSync(process.argv[1]);
      } catch {}
    }
    return createRequire(from || path.join(process.cwd(), '[replsock]'));
  };

  const ends = new WeakSet(); // the errors of the guard before process.exit()

  // Lends `require` and `_` to typed code, and stands before process.exit(); undone by what it returns.
  function lend(client, request) {
    const undo = [];
    const put = (object, name, value) => {
      const before = Object.getOwnPropertyDescriptor(object, name);
      if (before && !before.configurable) return;
      Object.defineProperty(object, name, { value, configurable: true, writable: true, enumerable: Boolean(before && before.enumerable) });
      undo.push(() => {
        const now = Object.getOwnPropertyDescriptor(object, name);
        if (!now || now.value !== value) return;
        if (before) Object.defineProperty(object, name, before);
        else delete object[name];
      });
    };
    if (!('require' in globalThis)) put(globalThis, 'require', main_require());
    if (!('_' in globalThis) && client.last_set) put(globalThis, '_', client.last);
    if (!request.force) {
      for (const name of ['exit', 'reallyExit', 'abort', 'kill']) {
        const real = process[name];
        if (typeof real !== 'function') continue;
        put(process, name, function (...words) {
          const typed = /\breplsock-\d+/.test(String(new Error().stack));
          if (!typed || (name === 'kill' && (words[0] !== process.pid || words[1] === 0))) return real.apply(this, words);
          const refused = new Error(`process.${name}() would end the app`);
          refused.stack = `Error: ${refused.message}`;
          ends.add(refused);
          throw refused;
        });
      }
    }
    return () => undo.splice(0).reverse().forEach((one) => one());
  }

  function compiles(text) {
    const vm = require('vm');
    try {
      return Boolean(new vm.Script(text, { filename: 'replsock-check' }));
    } catch {
      return false;
    }
  }

  // As Node's own: what begins with a brace is an object, if it can be one.
  function as_expression(code) {
    const text = code.trim();
    if (!text.startsWith('{') || text.endsWith(';')) return code;
    return compiles(`(async () => (\n${text}\n))`) ? `(${text})` : code;
  }

  // Whether more lines are needed: it does not compile, and only because it ends where it does.
  function whole(code) {
    if (!code.trim() || compiles(`(async () => {${code}\n})`) || compiles(code)) return true;
    const vm = require('vm');
    try {
      new vm.Script(`async () => {${code}`, { filename: 'replsock-check' });
      return true;
    } catch (why) {
      const text = String(why && why.message);
      if (/Unexpected end of input|Unterminated template/.test(text)) return false;
      if (/Missing catch or finally after try/.test(text)) return /\bcatch\b|\bfinally\b/.test(code);
      if (/Invalid or unexpected token|Invalid regular expression: missing/.test(text)) {
        return !(code.lastIndexOf('/*') > code.lastIndexOf('*/'));
      }
      if (!/missing \) after argument list/.test(text)) return true;
      // At the very end of the text, or before it?
      const [at, , mark] = String(why.stack).split('\n');
      const line = Number((/:(\d+)$/.exec(at) || [])[1]);
      const lines = `async () => {${code}`.split('\n');
      const last = lines[lines.length - 1];
      return !(line === lines.length && (mark || '').indexOf('^') >= last.trimEnd().length);
    }
  }

  // In the agent, under V8's time limit: called by Runtime.evaluate only.
  function show() {
    const value = slot;
    const { mode, limit, colors, depth, read_only, failed } = order;
    const out = { type: value === null ? 'null' : typeof value };
    if (mode === 'json' && !failed) {
      if (value === undefined) return { ...out, json: 'null', undefined: true };
      const json = JSON.stringify(value);
      return { ...out, json: json === undefined ? 'null' : json };
    }
    let text;
    if (mode === 'raw' && typeof value === 'string') text = value;
    else if (mode === 'raw' && value === undefined) text = '';
    else {
      text = util.inspect(value, {
        colors: Boolean(colors),
        depth: depth === undefined ? 2 : depth,
        customInspect: !read_only,
        maxStringLength: limit || 64 << 20,
      });
    }
    // What stands below the typed code is the agent itself.
    if (text.includes('at Session.post (')) {
      const frames = /\n(?:\x1b\[\d+m)?\s+at Session\.post \([^\n]*(?:\n(?:\x1b\[\d+m)?\s+at [^\n]*)*/g;
      text = text.replace(frames, (all) => (all.endsWith(' {') ? ' {' : ''));
    }
    if (failed) {
      text = `Uncaught ${text}`;
      if (value && typeof value === 'object') {
        if (ends.has(value)) out.would_end = true;
        out.name = String(value.name);
        out.message = String(value.message);
      }
    }
    if (limit && text.length > limit) {
      text = text.slice(0, limit);
      out.truncated = true;
    }
    out.text = text;
    return out;
  }

  const seen = (result) => {
    if (result.objectId) return { objectId: result.objectId };
    if (result.unserializableValue) return { unserializableValue: result.unserializableValue };
    return 'value' in result ? { value: result.value } : {};
  };

  // The text of a value: taken by its handle, shown in a second evaluation that has a time limit, too.
  function render(client, request, result, failed, done) {
    const timeout = request.timeout_ms ? { timeout: request.timeout_ms } : {};
    const handle = { expression: `globalThis[Symbol.for('replsock.agent')]`, silent: true };
    post('Runtime.evaluate', handle, (why, agent) => {
      if (why || !agent.result.objectId) return done({ ok: false, text: 'the agent is not itself any more' });
      const take = {
        objectId: agent.result.objectId,
        functionDeclaration: 'function (value) { this.take(value); }',
        arguments: [seen(result)],
        silent: true,
      };
      post('Runtime.callFunctionOn', take, () => {
        if (!failed) {
          client.last = slot;
          client.last_set = true;
        }
        order = { ...request, failed };
        const look = { expression: `globalThis[Symbol.for('replsock.agent')].show()`, returnByValue: true, silent: true, ...timeout };
        post('Runtime.evaluate', look, (failure, shown) => {
          slot = undefined;
          if (failure || !shown.result || shown.exceptionDetails || !shown.result.value) {
            const thrown = shown && shown.exceptionDetails && shown.exceptionDetails.exception;
            const text = (thrown && String(thrown.description || '').split('\n')[0]) || 'time limit';
            return done({ ok: false, text: `Uncaught ${text} (while its value was shown)`, unshown: true });
          }
          done({ ok: !failed, ...shown.result.value });
        });
      });
    });
  }

  const terminated = (why, answer) => {
    const details = answer && answer.exceptionDetails;
    const text = why ? String(why.message) : details ? `${details.text} ${(details.exception && details.exception.description) || ''}` : '';
    return /Execution was terminated|Internal error/.test(text);
  };

  // Calls `done` once; `request.settle`, if set meanwhile, ends the waiting for a promise.
  function evaluate(client, request, done) {
    guard();
    count += 1;
    const code = `${as_expression(String(request.code))}\n//# sourceURL=replsock-${count}`;
    const undo = lend(client, request);
    const begun = process.hrtime.bigint();
    const ms = () => Number(process.hrtime.bigint() - begun) / 1e6;
    const group = `replsock-${count}`;
    let over = false;
    let timer = null;
    const finish = (answer) => {
      if (over) return;
      over = true;
      undo();
      if (timer) clearTimeout(timer);
      request.settle = undefined;
      if (session) post('Runtime.releaseObjectGroup', { objectGroup: group });
      done({ ...answer, ms: Math.round(ms() * 1000) / 1000 });
    };
    const parameters = {
      expression: code,
      objectGroup: group,
      replMode: true,
      awaitPromise: true,
      silent: true,
      throwOnSideEffect: Boolean(request.read_only),
    };
    if (request.timeout_ms) parameters.timeout = request.timeout_ms;
    recent = true;
    let sync = true;
    post('Runtime.evaluate', parameters, (why, answer) => {
      const failed = Boolean(why || answer.exceptionDetails);
      const fate = () => {
        if (over) return;
        if (failed && terminated(why, answer) && request.timeout_ms && (ms() >= request.timeout_ms * 0.9 || why)) {
          return finish({ ok: false, timed_out: true, text: `ended by the time limit of ${request.timeout_ms} ms` });
        }
        if (why) return finish({ ok: false, text: `Uncaught ${why.message}` });
        const details = answer.exceptionDetails;
        render(client, request, details ? details.exception || { value: details.text } : answer.result, failed, finish);
      };
      // Not within the app's own turn, where a promise settles.
      if (sync) fate();
      else setImmediate(() => charge(fate));
    });
    sync = false;
    setImmediate(() => setImmediate(() => {
      recent = false;
    }));
    if (over) return;
    // A promise is pending. What was lent stays only where the rest of the code may need it.
    if (!/\bawait\b/.test(code) || !/\brequire\b|\b_\b|\b(exit|abort|kill|reallyExit)\b/.test(code)) undo();
    request.settle = () => finish({ ok: false, cancelled: true, text: 'not waited for any more; the promise goes on' });
    // A promise may be waited for longer than the loop may be held.
    const limit = request.wait_ms === undefined ? request.timeout_ms : request.wait_ms;
    if (limit) {
      const left = Math.max(1, limit - ms());
      timer = setTimeout(() => finish({ ok: false, timed_out: true, text: 'a promise was still pending at the time limit' }), left);
      timer.unref();
    }
  }

  // ---- the guard ----
  // What typed code rejects or throws later must not end the app. Node asks the app by process.emit: what is
  // ours does not get there, everything else does, as if we were not here.
  let guarded = null;
  let release = null;
  const EVENTS = new Set(['uncaughtException', 'uncaughtExceptionMonitor', 'unhandledRejection', 'rejectionHandled']);
  function ours(what) {
    try {
      if (what !== null && typeof what === 'object' && typeof what.stack === 'string') {
        return /\breplsock-\d+/.test(what.stack) || (recent && /dynamic import callback/.test(what.message));
      }
    } catch {}
    return recent;
  }
  function guard() {
    if (release) {
      clearTimeout(release);
      release = null;
    }
    if (guarded) return;
    const before = Object.getOwnPropertyDescriptor(process, 'emit');
    const emit = process.emit;
    const wrapper = function (name, ...words) {
      if (EVENTS.has(name) && name !== 'rejectionHandled' && ours(words[0])) {
        if (name !== 'uncaughtExceptionMonitor') {
          let text = '';
          try {
            text = util.inspect(words[0]).split('\n').slice(0, 2).join(' ');
          } catch {}
          for (const client of clients) client.tell({ event: 'guarded', text });
        }
        return true;
      }
      return emit.call(this, name, ...words);
    };
    Object.defineProperty(process, 'emit', { value: wrapper, configurable: true, writable: true, enumerable: false });
    guarded = () => {
      const now = Object.getOwnPropertyDescriptor(process, 'emit');
      // Wrapped again by somebody else: it stays below.
      if (!now || now.value !== wrapper) return;
      if (before) Object.defineProperty(process, 'emit', before);
      else delete process.emit;
      guarded = null;
    };
  }
  // A timer that was typed in may throw after its client is gone: the guard stays for a minute.
  const LINGER = 60000;
  function rest() {
    if (clients.size > 0) return;
    if (session) {
      session.disconnect();
      session = null;
    }
    if (!guarded || release) return;
    release = setTimeout(() => {
      release = null;
      if (guarded && clients.size === 0) guarded();
    }, LINGER);
    release.unref();
  }

  // ---- completion ----
  const WORD = '[A-Za-z_$][\\w$]*';
  const CHAIN = new RegExp(`((?:${WORD})(?:\\?\\.${WORD}|\\.${WORD}|\\[\\d+\\]|\\[(?:'[^'\\\\]*'|"[^"\\\\]*")\\])*)(\\?\\.|\\.)(${WORD})?$`);
  function names_of() {
    const found = new Set();
    let object = slot;
    if (object === null || object === undefined) return [];
    if (util.types.isProxy(object)) return [];
    object = Object(object);
    for (let depth = 0; object && depth < 10 && found.size < 5000; depth += 1) {
      if (util.types.isProxy(object)) break;
      for (const name of Object.getOwnPropertyNames(object)) {
        if (/^[A-Za-z_$][\w$]*$/.test(name)) found.add(name);
      }
      object = Object.getPrototypeOf(object);
    }
    return [...found];
  }
  function complete(client, text, done) {
    const chain = CHAIN.exec(text);
    const finish = (start, list) => {
      const partial = text.slice(start);
      slot = undefined;
      done({ ok: true, start, list: [...new Set(list)].filter((name) => name.startsWith(partial)).sort().slice(0, 500) });
    };
    const look = (start) => {
      const expression = `globalThis[Symbol.for('replsock.agent')].names()`;
      post('Runtime.evaluate', { expression, returnByValue: true, silent: true, timeout: 200 }, (why, answer) => {
        finish(start, why || !Array.isArray(answer.result.value) ? [] : answer.result.value);
      });
    };
    if (!chain) {
      const start = text.length - (new RegExp(`(${WORD})?$`).exec(text)[0] || '').length;
      post('Runtime.globalLexicalScopeNames', {}, (why, answer) => {
        slot = globalThis;
        const more = (why ? [] : answer.names).concat(['require', '_', 'await', 'async', 'function', 'const', 'return', 'typeof', 'delete', 'class', 'undefined']);
        const expression = `globalThis[Symbol.for('replsock.agent')].names()`;
        post('Runtime.evaluate', { expression, returnByValue: true, silent: true, timeout: 200 }, (failure, found) => {
          finish(start, more.concat(failure || !Array.isArray(found.result.value) ? [] : found.result.value));
        });
      });
      return;
    }
    const start = text.length - (chain[3] || '').length;
    const undo = lend(client, { force: true });
    const base = { expression: chain[1], throwOnSideEffect: true, silent: true, timeout: 200, replMode: true, objectGroup: 'replsock-complete' };
    post('Runtime.evaluate', base, (why, answer) => {
      undo();
      if (why || answer.exceptionDetails) return finish(start, []);
      post('Runtime.evaluate', { expression: `globalThis[Symbol.for('replsock.agent')]`, silent: true, objectGroup: 'replsock-complete' }, (failure, agent) => {
        if (failure || !agent.result.objectId) return finish(start, []);
        const take = { objectId: agent.result.objectId, functionDeclaration: 'function (value) { this.take(value); }', arguments: [seen(answer.result)], silent: true };
        post('Runtime.callFunctionOn', take, () => {
          look(start);
          post('Runtime.releaseObjectGroup', { objectGroup: 'replsock-complete' });
        });
      });
    });
  }

  // ---- profiles ----
  let profiler = null;
  let profile_since = 0;
  let profile_end = null;
  function profile_start(interval_us, done) {
    if (profiler) {
      return done({ ok: false, running: true, text: `a profile is running since ${Math.round((Date.now() - profile_since) / 1000)} s` });
    }
    const { Session } = require('inspector');
    profiler = new Session();
    profiler.connect();
    profile_since = Date.now();
    profiler.post('Profiler.enable');
    profiler.post('Profiler.setSamplingInterval', { interval: interval_us || 1000 });
    profiler.post('Profiler.start', (why) => {
      if (why) {
        profiler.disconnect();
        profiler = null;
        return done({ ok: false, text: why.message });
      }
      // What was optimised before has no positions of the functions that were inlined: from Node 22 on a hot
      // function was counted as its caller (measured). This throws that code away once, and no more.
      profiler.post('Profiler.startPreciseCoverage', { callCount: false, detailed: false }, () => {});
      profiler.post('Profiler.stopPreciseCoverage', () => {});
      profile_end = setTimeout(profile_to_file, Number(settings.prof_max_ms) || 300000);
      profile_end.unref();
      done({ ok: true });
    });
  }
  function profile_stop(done) {
    if (!profiler) return done({ ok: false, text: 'no profile is running' });
    const own_session = profiler;
    profiler = null;
    clearTimeout(profile_end);
    own_session.post('Profiler.stop', (why, answer) => {
      own_session.post('Profiler.disable');
      own_session.disconnect();
      if (why) return done({ ok: false, text: why.message });
      done({ ok: true, profile: answer.profile });
    });
  }
  // Nobody may be there to fetch it: it goes beside the socket.
  function profile_to_file() {
    profile_stop((answer) => {
      if (!answer.ok) return;
      try {
        const name = path.join(directory, `${app}-${process.pid}-${new Date().toISOString().replace(/[-:]/g, '').slice(0, 15)}Z.cpuprofile`);
        const fd = fs.openSync(`${name}.new`, 'wx', 0o600);
        try {
          fs.writeSync(fd, JSON.stringify(answer.profile));
        } finally {
          fs.closeSync(fd);
        }
        fs.renameSync(`${name}.new`, name);
      } catch {}
    });
  }
  try {
    process.on(settings.prof_signal || 'SIGURG', () => {
      if (profiler) profile_to_file();
      else profile_start(0, () => {});
    });
  } catch {}

  // ---- a heap snapshot ----
  // The loop stands still meanwhile, so the parts are written past it: a client that does not read for two
  // seconds loses the rest, and the app goes on.
  const PATIENCE_MS = 2000;
  function heap(client, id, done) {
    const { socket } = client;
    const fd = socket._handle && socket._handle.fd;
    if (!(fd >= 0) || socket.writableLength > 0) return done({ ok: false, text: 'the connection is not idle' });
    const pause = new Int32Array(new SharedArrayBuffer(4));
    let lost = false;
    const write = (bytes) => {
      let at = 0;
      let since = Date.now();
      while (at < bytes.length && !lost) {
        try {
          at += fs.writeSync(fd, bytes, at);
          since = Date.now();
        } catch (why) {
          if (why.code !== 'EAGAIN' || Date.now() - since > PATIENCE_MS) lost = true;
          else Atomics.wait(pause, 0, 0, 2);
        }
      }
    };
    const { Session } = require('inspector');
    const own_session = new Session();
    own_session.connect();
    own_session.on('HeapProfiler.addHeapSnapshotChunk', (message) => {
      if (!lost) write(data_frames(`${JSON.stringify({ id, chunk: message.params.chunk })}\n`));
    });
    own_session.post('HeapProfiler.takeHeapSnapshot', { reportProgress: false }, (why) => {
      own_session.disconnect();
      if (lost) client.drop();
      else done(why ? { ok: false, text: why.message } : { ok: true });
    });
  }

  // ---- the share of the loop's time that clients may have ----
  // 50 ms at once, then 2 %: a flood of evaluations is slowed down, a person does not notice.
  const BURST = 50;
  const SHARE = 0.02;
  let budget = BURST;
  let counted = Date.now();
  let busy = false;
  const waiting = [];
  // A debt is at most what is waited for a second.
  function charge(job) {
    const begun = process.hrtime.bigint();
    try {
      job();
    } catch {}
    budget = Math.max(-SHARE * 1000, budget - Number(process.hrtime.bigint() - begun) / 1e6);
  }
  function soon(job) {
    waiting.push(job);
    if (!busy) next();
  }
  function next() {
    const job = waiting.shift();
    if (!job) {
      busy = false;
      return;
    }
    busy = true;
    const now = Date.now();
    budget = Math.min(BURST, budget + (now - counted) * SHARE);
    counted = now;
    const run = () => {
      charge(job);
      next();
    };
    // From setImmediate: an evaluation out of a socket's callback can hang the app when it is ended.
    if (budget >= 0) setImmediate(run);
    else setTimeout(() => setImmediate(run), Math.min(1000, -budget / SHARE)).unref();
  }

  // ---- clients ----
  const KINDS = { HELLO: 1, DATA: 2, EOF: 3, ERROR: 8 };
  const LONGEST_REQUEST = 4 << 20;
  const MOST_WAITING = 16;
  function frame(kind, body) {
    const head = Buffer.allocUnsafe(4);
    head[0] = kind;
    head.writeUIntLE(body.length, 1, 3);
    return Buffer.concat([head, body]);
  }
  function data_frames(text) {
    const bytes = Buffer.from(text);
    const parts = [];
    for (let at = 0; at < bytes.length; at += 0xffffff) parts.push(frame(KINDS.DATA, bytes.subarray(at, at + 0xffffff)));
    return Buffer.concat(parts);
  }

  class Client {
    constructor(socket) {
      this.socket = socket;
      this.mode = '';
      this.bytes = [];
      this.length = 0;
      this.text = '';
      this.pending = new Set();
      this.turn = false; // an evaluation is under way
      this.queue = [];
      this.ended = false;
      this.gone = false;
      socket.on('error', () => this.drop());
      socket.on('close', () => this.drop());
      socket.on('drain', () => this.flow());
      socket.on('data', (bytes) => {
        try {
          this.hear(bytes);
        } catch {
          this.drop();
        }
      });
      socket.on('end', () => {
        this.ended = true;
        if (this.mode === 'text') this.lines(true);
        this.leave();
      });
    }

    drop() {
      if (this.gone) return;
      this.gone = true;
      clients.delete(this);
      for (const request of this.pending) if (request.settle) request.settle();
      this.last = undefined;
      if (this.profiling) profile_stop(() => {});
      this.socket.destroy();
      rest();
    }

    // Half-closed: it gets its answers, and then the end.
    leave() {
      if (this.ended && this.pending.size === 0 && !this.gone) this.socket.end();
    }

    flow() {
      if (this.gone) return;
      const full = this.pending.size >= MOST_WAITING || this.socket.writableLength > 1 << 20;
      if (full) this.socket.pause();
      else if (this.socket.isPaused()) this.socket.resume();
    }

    send(bytes) {
      if (this.gone) return;
      this.socket.write(bytes);
      if (this.socket.writableLength > 64 << 20) this.drop();
      else this.flow();
    }

    tell(message) {
      if (this.mode === 'frames') this.send(data_frames(`${JSON.stringify(message)}\n`));
    }

    hear(bytes) {
      if (this.mode === '') {
        if (bytes[0] === 0) {
          this.mode = 'frames';
          const hello = { version: 1, mode: 'agent', app, pid: process.pid };
          this.send(frame(KINDS.HELLO, Buffer.from(JSON.stringify(hello))));
          bytes = bytes.subarray(1);
        } else {
          this.mode = 'text';
          this.decoder = new (require('string_decoder').StringDecoder)('utf8');
        }
      }
      if (this.mode === 'text') {
        this.text += this.decoder.write(bytes);
        if (this.text.length > LONGEST_REQUEST) return this.drop();
        this.lines(false);
        return;
      }
      this.bytes.push(bytes);
      this.length += bytes.length;
      if (this.length < 4) return;
      let all = this.bytes.length === 1 ? this.bytes[0] : Buffer.concat(this.bytes);
      while (all.length >= 4) {
        const size = all.readUIntLE(1, 3);
        if (size > LONGEST_REQUEST || all[0] < 1 || all[0] > 8) return this.drop();
        if (all.length < 4 + size) break;
        const body = all.subarray(4, 4 + size);
        if (all[0] === KINDS.DATA) {
          this.text += body.toString('utf8');
          if (this.text.length > LONGEST_REQUEST) return this.drop();
          this.requests();
        } else if (all[0] === KINDS.EOF) {
          this.ended = true;
        }
        all = all.subarray(4 + size);
      }
      this.bytes = all.length ? [all] : [];
      this.length = all.length;
      this.leave();
    }

    requests() {
      const lines = this.text.split('\n');
      this.text = lines.pop();
      for (const line of lines) {
        if (!line.trim()) continue;
        let request;
        try {
          request = JSON.parse(line);
        } catch {
          request = null;
        }
        if (request === null || typeof request !== 'object') {
          this.tell({ id: null, ok: false, text: 'no JSON object' });
          continue;
        }
        this.ask(request);
      }
    }

    // Plain text: evaluated line by line, but where more lines are needed they are waited for.
    lines(last) {
      let code = '';
      const lines = this.text.split('\n');
      const rest_of = last ? '' : lines.pop();
      for (const line of lines) {
        code = code ? `${code}\n${line}` : line;
        if (!code.trim()) {
          code = '';
          continue;
        }
        if (!whole(code)) continue;
        this.plain(code);
        code = '';
      }
      if (last && code.trim()) this.plain(code);
      this.text = last ? '' : code ? `${code}\n${rest_of}` : rest_of;
    }

    plain(code) {
      const request = { code, mode: 'text', limit: 1 << 20, timeout_ms: 5000, wait_ms: 0 };
      this.begin(request, (answer) => this.send(Buffer.from(`${answer.text}\n`)));
    }

    // One evaluation after the other.
    begin(request, answer) {
      this.pending.add(request);
      this.flow();
      const run = () => {
        soon(() => {
          if (this.gone) {
            this.pending.delete(request);
            return;
          }
          evaluate(this, request, (result) => {
            this.pending.delete(request);
            const following = this.queue.shift();
            this.turn = Boolean(following);
            answer(result);
            if (following) following();
            this.flow();
            this.leave();
          });
        });
      };
      if (this.turn) this.queue.push(run);
      else run();
      this.turn = true;
    }

    ask(request) {
      const { id, op } = request;
      const answer = (result) => this.tell({ id, ...result });
      const later = (job) => {
        this.pending.add(request);
        this.flow();
        soon(() => {
          const done = (result) => {
            this.pending.delete(request);
            answer(result);
            this.flow();
            this.leave();
          };
          if (this.gone) this.pending.delete(request);
          else job(done);
        });
      };
      switch (op) {
        case 'ping':
          return answer({ ok: true });
        case 'info':
          return answer({ ok: true, ...info() });
        case 'eval':
          if (typeof request.code !== 'string') return answer({ ok: false, text: 'no code' });
          return this.begin(request, answer);
        case 'cancel':
          for (const one of this.pending) if (one.settle) one.settle();
          return undefined;
        case 'check':
          return answer({ ok: true, whole: whole(String(request.code)) });
        case 'complete':
          return later((done) => complete(this, String(request.text).slice(-4096), done));
        case 'profile':
          return later((done) => {
            if (request.action === 'start') {
              profile_start(Number(request.interval_us), (result) => {
                // What this client began for itself ends with it.
                this.profiling = Boolean(result.ok && request.owned);
                done(result);
              });
            } else if (request.action === 'stop') {
              this.profiling = false;
              profile_stop(done);
            }
            else done({ ok: true, running: Boolean(profiler) });
          });
        case 'heap':
          return later((done) => heap(this, id, done));
        default:
          return answer({ ok: false, text: `no such operation: ${String(op).slice(0, 40)}` });
      }
    }
  }

  function info() {
    const memory = process.memoryUsage();
    return {
      app,
      pid: process.pid,
      uid: process.geteuid(),
      runtime: 'node',
      version: process.version,
      worker,
      generation,
      draining: draining(),
      uptime_s: Math.round(process.uptime()),
      rss: memory.rss,
      heap_used: memory.heapUsed,
      heap_total: memory.heapTotal,
      profiling: Boolean(profiler),
      clients: clients.size,
    };
  }

  Object.defineProperty(globalThis, AGENT, {
    value: Object.freeze({
      __proto__: null,
      take: (value) => {
        slot = value;
      },
      show,
      names: names_of,
      socket: () => sockname,
    }),
    configurable: true,
  });
  return undefined;
})(require, globalThis[Symbol.for('replsock.given')]);
