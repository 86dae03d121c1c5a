// Writes lines: talk.js LENGTH COUNT. Each is "WORKER NUMBER xxxx... WORKER NUMBER" of that length.
const length = Number(process.argv[2]);
const count = Number(process.argv[3]);
const id = process.env.WORKER_ID;
let number = 0;
const line = (n) => {
  const mark = `${id} ${String(n).padStart(7, '0')}`;
  return `${mark} ${'x'.repeat(length - 2 * mark.length - 2)} ${mark}\n`;
};
const more = () => {
  while (number < count) {
    number += 1;
    if (!process.stdout.write(line(number))) {
      process.stdout.once('drain', more);
      return;
    }
  }
};
more();
require('http').createServer((_, response) => response.end(`hello ${process.pid}\n`)).listen(Number(process.env.PORT), '127.0.0.1');
