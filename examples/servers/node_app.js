// node on a socket it is given; `close` accepts no more and waits for what is being answered.
const server = require('http').createServer((request, response) => {
  setTimeout(() => response.end(`${process.pid}\n`), 20);
});
server.listen({ fd: Number(process.argv[2]) }, () => console.log('serving'));
process.on('SIGTERM', () => server.close());
