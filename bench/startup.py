"""Services: from nothing to the first answer, against from a checkpoint to it."""

import http.client
import subprocess
import time

from bench.harness import Row
from bench.subject import Subject
from bench.trees import PROBLEMS
from e2e.soak.programs import java, node
from e2e.soak.program import source
from e2e.wait import until

PORT = 8080


def answers():
    try:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
        connection.request("GET", "/check")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def until_answer(start):
    until(answers, seconds=60, what="an answer", every=0.001)
    return (time.monotonic() - start) * 1000


def services(folder):
    subprocess.run([f"{java.HOME}/bin/javac", "-d", folder, source("Server.java")], check=True)
    return {"JVM": ([f"{java.HOME}/bin/java", "-XX:+UseSerialGC", "-Xmx96m", "-cp", folder, "Server"], 0.1),
            "Node": ([node.NODE, source("server.js")], None)}


def startup(run):
    """the first answer of a JVM and of a Node service, restored against started cold"""
    for name, (command, ratio) in services(run.folder).items():
        samples = {}
        try:
            for _ in range(run.repetitions):
                start = time.monotonic()
                with Subject(run.folder, command) as subject:
                    samples.setdefault("cold", []).append(until_answer(start))
                    time.sleep(0.5)  # what it does after its first answer
                    subject.dump("Stasis", "--kill")
                    start = time.monotonic()
                    subject.restore("Stasis")
                    samples.setdefault("Stasis", []).append(until_answer(start))
        except PROBLEMS as error:
            run.failed("startup", name, error)
        run.add(Row("startup", f"{name}, to the first answer", samples, ratio=ratio, base="cold"))
