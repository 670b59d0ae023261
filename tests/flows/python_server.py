# SPDX-License-Identifier: Apache-2.0
"""A server with everything a Python program of today has: threads with a queue, an asyncio loop, a subprocess.

python_server.py PORT. For each line the answer is its SHA-256, made on a way through all three parts: the asyncio loop
takes the line, a thread of a pool computes, and every tenth goes through `sha256sum`-like work in a child process.
"""
import asyncio
import concurrent.futures
import hashlib
import subprocess
import sys
import threading

WORKER = "import sys, hashlib\nfor l in sys.stdin: print(hashlib.sha256(l.strip().encode()).hexdigest(), flush=True)"


class Child:
    """A subprocess that answers lines over pipes."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1)

    def digest(self, text):
        with self.lock:
            self.process.stdin.write(text + "\n")
            return self.process.stdout.readline().strip()


async def main(port):
    child, pool = Child(), concurrent.futures.ThreadPoolExecutor(16)
    loop = asyncio.get_running_loop()
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def serve(reader, writer):
        count = 0
        while line := await reader.readline():
            text, count = line.decode().strip(), count + 1
            if count % 10 == 0:
                answer = await loop.run_in_executor(pool, child.digest, text)
            else:
                answer = await loop.run_in_executor(pool, lambda: hashlib.sha256(text.encode()).hexdigest())
            writer.write(answer.encode() + b"\n")
            await writer.drain()
        writer.close()

    ticker = asyncio.create_task(tick())
    server = await asyncio.start_server(serve, "0.0.0.0", port)
    async with server:
        await server.serve_forever()
    ticker.cancel()


asyncio.run(main(int(sys.argv[1])))
