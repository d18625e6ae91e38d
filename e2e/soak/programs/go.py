"""A Go server: netpoll, timers, goroutines on several threads, and children waited for by pidfd."""

import os
import subprocess

from e2e.paths import BUILD
from e2e.soak.program import Image, Program, source


def image():
    program = BUILD / "soak" / "goserver"
    path = f"{os.environ['PATH']}:/usr/local/go/bin:/usr/lib/go/bin"
    subprocess.run(["go", "build", "-trimpath", "-o", program, source("server.go")], check=True,
                   env={**os.environ, "PATH": path, "CGO_ENABLED": "0"})
    return Image(["/server"], files={"server": program}, user="1000")


PROGRAMS = [Program("go", image)]
