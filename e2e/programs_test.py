"""Programs that nobody tuned for: each goes on where it was, and cannot tell."""

import http.client
import os
import signal
import socket

from e2e.redis import Redis
from e2e.wait import until


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def is_up(port):
    try:
        return bool(get(port))
    except OSError:
        return False


def counts_without_a_gap(text):
    numbers = [int(line) for line in text.splitlines()]
    return numbers == list(range(len(numbers)))


def counts_on(program):
    """Waits for more lines of a counting program, then ends it; no number may be missing or double."""
    lines = program.out.count("\n")
    until(lambda: program.out.count("\n") > lines + 20, what="more lines")
    (program.folder / "go").touch()
    assert program.wait() == 0, program.err
    assert counts_without_a_gap(program.out)


def test_sleep(start, passes):
    program = start("sleep", "1.5")
    program.pass_through(passes)
    assert program.wait() == 0


def test_bash_loop(start, passes):
    program = start("bash", "-c", 'for ((i = 0; !go; i++)); do echo $i; sleep 0.005; [ ! -e go ] || go=1; done')
    until(lambda: program.out.count("\n") > 20)
    program.pass_through(passes)
    counts_on(program)


def test_perl(start, passes):
    program = start("perl", "-e", '$| = 1; $SIG{ALRM} = sub { $due = 1 };'
                    'for ($i = 0; !-e "go"; ) { alarm 5 if !$due; print $i++, "\\n";'
                    ' select undef, undef, undef, 0.005; }')
    until(lambda: program.out.count("\n") > 20)
    program.pass_through(passes)
    counts_on(program)


def test_shell_pipeline(start, passes, folder):
    program = start("bash", "-c", "for ((i = 0; !go; i++)); do echo $i; sleep 0.002; [ ! -e go ] || go=1; done"
                    " | tee all | sort -n | tail -n 1 >last")
    lines = lambda: (folder / "all").read_text() if (folder / "all").exists() else ""
    until(lambda: lines().count("\n") > 20)
    program.pass_through(passes)
    before = lines().count("\n")
    until(lambda: lines().count("\n") > before + 20)
    (folder / "go").touch()
    assert program.wait() == 0, program.err
    assert counts_without_a_gap(lines())
    assert (folder / "last").read_text() == lines().splitlines()[-1] + "\n"


THREADED = """
import http.server, itertools, sys, threading
numbers, lock = itertools.count(), threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            body = str(next(numbers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): pass
ticker = threading.Event()
threading.Thread(target=lambda: [None for _ in iter(lambda: ticker.wait(0.01), True)], daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_threaded_python_server(start, passes):
    port = free_port()
    program = start("/usr/bin/python3", "-c", THREADED, port)
    until(lambda: is_up(port))
    first = int(get(port))
    program.pass_through(passes)
    assert [int(get(port)) for _ in range(5)] == list(range(first + 1, first + 6))


PREFORKING = """
import os, socket, sys, signal
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
def serve():
    served = 0
    while True:
        connection, _ = listener.accept()
        connection.recv(4096)
        served += 1
        body = f"{os.getpid()} {served}"
        connection.sendall(f"HTTP/1.0 200 OK\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
        connection.close()
workers = [pid for pid in (os.fork() for _ in range(3)) if pid or serve()]
signal.signal(signal.SIGTERM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in workers])
codes = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers}
sys.exit(0 if codes == {-signal.SIGTERM} else 1)
"""


def test_preforking_python_server(start, passes):
    port = free_port()
    program = start("/usr/bin/python3", "-c", PREFORKING, port)
    until(lambda: is_up(port))
    served = {}

    def ask():
        pid, count = map(int, get(port).split())
        assert count == served.get(pid, count - 1) + 1
        served[pid] = count

    for _ in range(30):
        ask()
    pids = set(served)
    program.pass_through(passes)
    for _ in range(30):
        ask()
    assert set(served) >= pids
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait() == 0, program.err


def test_redis(start, passes):
    port = free_port()
    program = start("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "")
    redis = until(lambda: Redis.connect("127.0.0.1", port))
    redis.pipeline(("SET", f"key:{i}", f"value {i}") for i in range(10_000))
    run_id = redis.info()["run_id"]
    redis.close()
    program.pass_through(passes)
    redis = until(lambda: Redis.connect("127.0.0.1", port))
    assert redis.info()["run_id"] == run_id  # drawn at start: it is the same process, not a new one
    values = redis.pipeline(("GET", f"key:{i}") for i in range(10_000))
    assert values == [f"value {i}" for i in range(10_000)]
    redis.send("SHUTDOWN")
    assert program.wait() == 0
