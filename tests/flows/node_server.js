// SPDX-License-Identifier: Apache-2.0
// An HTTP server with timers and work in libuv's thread pool: GET /TEXT answers with the SHA-256 of TEXT.
const http = require('http'), crypto = require('crypto');
let ticks = 0;
setInterval(() => ticks++, 10);
const server = http.createServer((request, response) => {
  const text = decodeURIComponent(request.url.slice(1));
  // scrypt runs in the pool; its result is not needed, that it comes is.
  crypto.scrypt(text, 'salt', 16, { N: 16 }, (error) => {
    if (error) throw error;
    response.end(crypto.createHash('sha256').update(text).digest('hex'));
  });
});
server.keepAliveTimeout = 600000;
server.listen(Number(process.argv[2]), '0.0.0.0');
