"""A C++ program with every common way to wait for another thread, which checks itself all the time."""

from e2e.paths import TARGETS
from e2e.soak.program import Image, Program

SECURITY = {"run_as_user": {"value": "1000"}, "no_new_privs": True,
            "capabilities": {"drop_capabilities": ["ALL"]}, "seccomp": {"profile_type": "RuntimeDefault"}}


def image():
    return Image(["/threads"], programs=[TARGETS / "soak_threads"],
                 files={"threads": TARGETS / "soak_threads"}, user="1000")


PROGRAMS = [Program("cpp", image, security=SECURITY)]
