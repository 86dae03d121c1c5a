// As many lines as asked for on standard error, at once, and then the end.
const count = Number(process.argv[2]);
for (let number = 1; number <= count; number += 1) console.error(`burst ${number}`);
process.exit(1);
