"""OpenJDK: an HTTP server with threads, timers and garbage, once with each collector."""

import subprocess

from e2e.paths import BUILD
from e2e.soak.program import Image, Program, source

HOME = "/usr/lib/jvm/java-17-openjdk-amd64"


def runtime():
    """A runtime of only the modules that the server needs, and its classes, as files of an image."""
    folder = BUILD / "soak" / "java"
    if not (folder / "jre").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([f"{HOME}/bin/jlink", "--add-modules", "java.base,jdk.httpserver", "--strip-java-debug-attributes",
                        "--no-man-pages", "--no-header-files", "--output", folder / "jre"], check=True)
    subprocess.run([f"{HOME}/bin/javac", "-d", folder / "classes", source("Server.java")], check=True)
    return {f"java/{path.relative_to(folder)}": path
            for path in sorted(folder.rglob("*")) if path.is_file()}


def image_of(collector):
    def image():
        return Image(["/java/jre/bin/java", f"-XX:+Use{collector}GC", "-Xmx96m", "-cp", "/java/classes",
                      "Server"], programs=[f"{HOME}/bin/java", f"{HOME}/lib/server/libjvm.so"],
                     files=runtime(), user="1000")
    return image


PROGRAMS = [Program(f"java-{collector.lower()}", image_of(collector), needs=(f"{HOME}/bin/javac",))
            for collector in ("Serial", "Parallel", "G1", "Z")]
