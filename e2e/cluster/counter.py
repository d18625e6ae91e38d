"""Runs in the pods of the tests: counts in memory, and answers over HTTP.

/count adds one and gives the count and when the process began; /read?PATH gives a file; /write?PATH writes
one; /hold?PATH keeps one open, /held gives what it has now; /map?PATH maps one, /mapped gives what it has;
/watch?PATH watches one by inotify; /grow?MIB takes memory that does not compress; /exit?CODE ends the process.
"""

import ctypes
import json
import mmap
import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

state = {"count": 0, "born": time.time_ns()}
held, mapped, grown = [], [], []
IN_CLOSE = 0x18  # inotify(7)


def answer(path, argument):
    if path == "/count":
        state["count"] += 1
        return json.dumps(state)
    if path == "/read":
        return Path(argument).read_text(encoding="utf-8")
    if path == "/write":
        return str(Path(argument).write_text(f"written at {state['count']}", encoding="utf-8"))
    if path == "/hold":
        held.append(open(argument, encoding="utf-8"))
        return argument
    if path == "/held":
        held[-1].seek(0)
        return held[-1].read()
    if path == "/map":
        with open(argument, "rb") as file:
            mapped.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return argument
    if path == "/mapped":
        return mapped[-1][:].decode()
    if path == "/watch":
        libc = ctypes.CDLL(None)
        return str(libc.inotify_add_watch(libc.inotify_init(), argument.encode(), IN_CLOSE))
    if path == "/grow":
        grown.extend(os.urandom(1 << 20) for _ in range(int(argument)))
        return argument
    if path == "/exit":
        os._exit(int(argument))
    return "alive"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, argument = self.path.partition("?")
        try:
            code, text = 200, answer(path, argument)
        except OSError as error:
            code, text = 500, str(error)
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format, *args):
        pass


print(f"counter {state['born']} begins", flush=True)
HTTPServer(("", 8080), Handler).serve_forever()
