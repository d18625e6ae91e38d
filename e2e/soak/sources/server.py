"""Counts for each client, by way of all that Python has for doing things at once."""

import asyncio
import multiprocessing
import queue
import threading
import time


def square(number):
    return number * number


def echo(questions, answers):
    while True:
        answers.put(questions.get())


class Threads:
    """Two threads that hand numbers to each other."""

    def __init__(self):
        self.condition = threading.Condition()
        self.jobs, self.done = queue.Queue(), 0
        self.ticks = 0
        threading.Thread(target=self.work, daemon=True).start()
        threading.Thread(target=self.tick, daemon=True).start()

    def work(self):
        while True:
            self.jobs.get()
            with self.condition:
                self.done += 1
                self.condition.notify_all()

    def tick(self):
        while True:
            time.sleep(0.01)
            self.ticks += 1

    def check(self):
        with self.condition:
            wanted = self.done + 1
            self.jobs.put(1)
            return self.condition.wait_for(lambda: self.done >= wanted, 30)


class Server:
    def __init__(self):
        self.pool = multiprocessing.Pool(2)
        self.questions, self.answers = multiprocessing.Queue(), multiprocessing.Queue()
        multiprocessing.Process(target=echo, args=[self.questions, self.answers], daemon=True).start()
        self.manager = multiprocessing.Manager()
        self.counts = self.manager.dict()
        self.lock = threading.Lock()
        self.threads = Threads()
        self.asked = 0
        self.loop_ticks = 0

    def check(self):
        with self.lock:
            self.asked += 1
            numbers = list(range(self.asked, self.asked + 20))
            if self.pool.map(square, numbers) != [number * number for number in numbers]:
                return "the pool's answer"
            self.questions.put(self.asked)
            if self.answers.get(timeout=30) != self.asked:
                return "the queue's answer"
            ticks = self.threads.ticks, self.loop_ticks
            if not self.threads.check():
                return "a thread that does not answer"
            for _ in range(200):
                if self.threads.ticks != ticks[0] and self.loop_ticks != ticks[1]:
                    break
                time.sleep(0.05)
            else:
                return "a clock that stands still"
        return "ok"

    def add(self, client):
        with self.lock:
            count = self.counts[client] = self.counts.get(client, 0) + 1
        return f"{client} {count}"

    async def tick(self):
        while True:
            await asyncio.sleep(0.01)
            self.loop_ticks += 1

    async def serve(self, reader, writer):
        loop = asyncio.get_running_loop()
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split()[1].decode()
                if path == "/check":
                    body = await loop.run_in_executor(None, self.check)
                else:
                    body = await loop.run_in_executor(None, self.add, path.rpartition("/")[2])
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main(self):
        ticking = asyncio.create_task(self.tick())
        server = await asyncio.start_server(self.serve, "0.0.0.0", 8080)
        async with server:
            await asyncio.gather(ticking, server.serve_forever())


if __name__ == "__main__":
    asyncio.run(Server().main())
