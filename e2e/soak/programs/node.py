"""Node.js: a cluster whose workers ask their primary for counts, worker threads and timers."""

from pathlib import Path

from e2e.soak.program import Image, Program, source

NODE = "/usr/bin/node"


def image():
    # Debian's has parts of itself in packages of their own.
    parts = [str(path) for name in ("acorn", "acorn-walk", "cjs-module-lexer", "undici", "busboy")
             for path in sorted(Path("/usr/share/nodejs", name).rglob("*.js"))]
    return Image([NODE, "/server.js"], programs=[NODE, *parts], user="1000",
                 files={"server.js": source("server.js")})


PROGRAMS = [Program("node", image, needs=(NODE,))]
