// A worker's share of numbered lines: numbered.js COUNT PER_SECOND. Worker w of spawnwork writes the numbers
// w * COUNT + 1 to (w + 1) * COUNT, in lines of 100 bytes as numbers.c has them; the odd ones to stderr.
// When all are written, it leaves a file numbered.done.W in NUMBERED_DIR, and serves on.
const fs = require('fs');
const http = require('http');
const count = Number(process.argv[2]);
const rate = Number(process.argv[3]);
const worker = Number(process.env.WORKER_ID);
let number = 0;
const line = (n) => {
  const digits = String(worker * count + n).padStart(10, '0');
  return `${digits} ${'x'.repeat(77)} ${digits}\n`;
};
const step = () => {
  for (let i = 0; i < rate / 100 && number < count; i += 1) {
    number += 1;
    (number % 2 ? process.stderr : process.stdout).write(line(number));
  }
  if (number < count) setTimeout(step, 10);
  else process.stdout.write('', () => fs.writeFileSync(`${process.env.NUMBERED_DIR}/numbered.done.${worker}`, ''));
};
http.createServer((_, response) => response.end('hello\n')).listen(Number(process.env.PORT), '127.0.0.1', step);
