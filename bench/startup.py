"""Services: from nothing to the first answer, against from a checkpoint to it."""

import http.client
import shutil
import subprocess
import time
from dataclasses import dataclass

from bench.harness import Row
from bench.subject import Subject
from bench.trees import PROBLEMS
from e2e.soak.programs import java, node
from e2e.soak.program import source
from e2e.wait import until

PORT = 8080
TOMCAT = "/usr/share/tomcat10"


@dataclass
class Service:
    name: str
    command: list
    path: str = "/check"
    ratio: float | None = None

    def answers(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
            connection.request("GET", self.path)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def until_answer(self, start):
        until(self.answers, seconds=120, what="an answer", every=0.001)
        return (time.monotonic() - start) * 1000


def tomcat(folder):
    """Debian's Tomcat 10 with the applications of its examples: some 3,000 classes by the first answer."""
    base = folder / "tomcat"
    subprocess.run(["tomcat10-instance-create", "-p", str(PORT), "-c", str(PORT + 1), base], check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    (base / "conf/Catalina/localhost").mkdir(parents=True)
    shutil.copy("/etc/tomcat10/Catalina/localhost/examples.xml", base / "conf/Catalina/localhost")
    jars = ":".join(f"{TOMCAT}/bin/{name}.jar" for name in ("bootstrap", "tomcat-juli"))
    return Service("JVM, Tomcat with its examples", [
        f"{java.HOME}/bin/java", "-XX:+UseSerialGC", "-Xmx128m", "-cp", jars, f"-Dcatalina.base={base}",
        f"-Dcatalina.home={TOMCAT}", f"-Djava.io.tmpdir={base}/temp", "org.apache.catalina.startup.Bootstrap", "start",
    ], path="/examples/servlets/servlet/HelloWorldExample", ratio=0.1)


def services(folder):
    subprocess.run([f"{java.HOME}/bin/javac", "-d", folder, source("Server.java")], check=True)
    return [tomcat(folder),
            Service("JVM, a bare HTTP server",
                    [f"{java.HOME}/bin/java", "-XX:+UseSerialGC", "-Xmx96m", "-cp", folder, "Server"]),
            Service("Node", [node.NODE, source("server.js")])]


def measure(run, service, samples):
    for who, options in {"Stasis": [], "Stasis, lazily": ["--lazy-pages"]}.items():
        start = time.monotonic()
        with Subject(run.folder, service.command) as subject:
            samples.setdefault("cold", []).append(service.until_answer(start))
            time.sleep(0.5)  # what it does after its first answer
            subject.dump("Stasis", "--kill")
            start = time.monotonic()
            subject.restore("Stasis", *options)
            samples.setdefault(who, []).append(service.until_answer(start))


def startup(run):
    """the first answer of JVMs and of a Node service, restored against started cold"""
    for service in services(run.folder):
        samples = {}
        try:
            for _ in range(run.repetitions):
                measure(run, service, samples)
        except PROBLEMS as error:
            run.failed("startup", service.name, error)
        run.add(Row("startup", f"{service.name}, to the first answer", samples, ratio=service.ratio, base="cold"))
