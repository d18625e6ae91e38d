"""PostgreSQL: counters in a table, and pgbench's books, whose sums have to be the same at all times."""

import subprocess
from pathlib import Path

from e2e.soak.program import Image, Program, Session, Wrong, connected

BIN = Path("/usr/lib/postgresql/15/bin")
LIB = BIN.parent / "lib"
SHARE = Path("/usr/share/postgresql/15")
START = f"""
[ -s /data/pg/PG_VERSION ] || {BIN}/initdb -D /data/pg -U postgres -A trust -E UTF8 --locale=C >/dev/null
grep -q 0.0.0.0/0 /data/pg/pg_hba.conf || echo host all all 0.0.0.0/0 trust >>/data/pg/pg_hba.conf
exec {BIN}/postgres -D /data/pg -c listen_addresses=0.0.0.0 -c unix_socket_directories=/tmp \
  -c max_connections=40 -c checkpoint_timeout=30s -c jit=off
"""
# In one statement, and so of one snapshot.
SUMS = ("SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
        " (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history);")


def address(place):
    return ["-h", place.ip, "-U", "postgres"]


class Psql:
    """One psql that is asked by its standard input."""

    def __init__(self, place):
        self.process = subprocess.Popen(
            ["/usr/bin/psql", "-XqAt", *address(place), "-v", "ON_ERROR_STOP=1", "postgres"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ask(self, statement):
        try:
            self.process.stdin.write(statement + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline().strip()
        if not line or line.startswith("psql:"):
            raise OSError(f"psql: {line}")
        return line

    def close(self):
        self.process.kill()
        self.process.wait()


class PostgresSession(Session):
    """Session 0 has pgbench besides."""

    def connect(self, place):
        self.psql = Psql(place)
        try:
            self.psql.ask("SELECT 1;")
        except OSError:
            self.psql.close()
            raise
        self.bench = None
        if self.number == 0:
            self.bench = subprocess.Popen(
                [BIN / "pgbench", *address(place), "-n", "-c", "4", "-T", "100000", "-R", "100", "postgres"],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def next(self):
        return int(self.psql.ask(f"UPDATE counters SET n = n + 1 WHERE id = {self.number} RETURNING n;"))

    def check(self):
        sums = self.psql.ask(SUMS).split("|")
        if len(set(sums)) != 1:
            raise Wrong(f"the sums are {sums}")
        if self.bench and self.bench.poll() is not None:
            raise Wrong(f"pgbench ended: {self.bench.stderr.read()}")

    def close(self):
        self.psql.close()
        if self.bench:
            self.bench.kill()
            self.bench.wait()


def prepare(place):
    probe = PostgresSession(-1)
    connected(probe, place)
    probe.close()
    statement = ("CREATE TABLE counters (id int PRIMARY KEY, n bigint NOT NULL);"
                 " INSERT INTO counters SELECT i, 0 FROM generate_series(0, 63) AS i;")
    for command in (["/usr/bin/psql", "-Xqc", statement], [BIN / "pgbench", "-iqs", "1"]):
        subprocess.run([*command, *address(place), "postgres"], check=True, capture_output=True)


def image():
    files = [path for path in SHARE.rglob("*") if path.is_file() and "extension" not in path.parts]
    files += SHARE.glob("extension/plpgsql*")
    return Image(["sh", "-c", START], user="1000", programs=[str(path) for path in [
        BIN / "postgres", BIN / "initdb", LIB / "plpgsql.so", LIB / "dict_snowball.so", *sorted(files)]])


PROGRAMS = [Program("postgres", image, PostgresSession, prepare=prepare, needs=(BIN / "postgres",))]
