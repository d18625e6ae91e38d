"""Python: an asyncio server over multiprocessing (Pool, Queue, Manager) and threads."""

from e2e.soak.program import Image, Program, source


def image():
    return Image(["/usr/bin/python3", "/server.py"], programs=["/usr/bin/python3"], user="1000",
                 packages=["libpython3.11-minimal", "libpython3.11-stdlib"],
                 files={"server.py": source("server.py")})


PROGRAMS = [Program("python", image, needs=("/usr/bin/python3.11",))]
