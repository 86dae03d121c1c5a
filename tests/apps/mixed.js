// A worker that writes COUNT lines of 100 to 100,000 bytes, the odd ones to stderr: mixed.js COUNT. Each is
// "W NUMBER xxxx... W NUMBER". When all are written it leaves a file mixed.done.W in MIXED_DIR, and serves on.
const fs = require('fs');
const count = Number(process.argv[2]);
const id = process.env.WORKER_ID;
const line = (n) => {
  const mark = `${id} ${String(n).padStart(7, '0')}`;
  // Most are short, and the longest is a hundred thousand bytes: n * 7919 % 100 spreads them.
  const length = n % 5 === 0 ? 1000 * (1 + ((n * 7919) % 100)) : 100 + ((n * 7919) % 5000);
  return `${mark} ${'x'.repeat(Math.min(length, 100000) - 2 * mark.length - 3)} ${mark}\n`;
};
let number = 0;
const step = () => {
  for (let i = 0; i < 4 && number < count; i += 1) {
    number += 1;
    (number % 2 ? process.stderr : process.stdout).write(line(number));
  }
  if (number < count) setTimeout(step, 10);
  else process.stdout.write('', () => process.stderr.write('', () => fs.writeFileSync(`${process.env.MIXED_DIR}/mixed.done.${id}`, '')));
};
require('http').createServer((_, response) => response.end('hello\n')).listen(Number(process.env.PORT), '127.0.0.1', step);
