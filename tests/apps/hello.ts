// The same small server in TypeScript.
import { createServer, type ServerResponse } from 'node:http';

enum Answer { Hello = 'hello' }
const answer = (response: ServerResponse): void => { response.end(`${Answer.Hello} ${process.pid}\n`); };
createServer((_, response) => answer(response)).listen(Number(process.env.PORT), '127.0.0.1');
