"""The steps of the main job, as the demo and the tests take them."""

import json
import subprocess
import tarfile

from e2e.paths import STASIS

KEYS = 10_000


class StasisError(Exception):
    """What the command line tool said when it did not succeed."""


def stasis(*words, deadline=120):
    done = subprocess.run([STASIS, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=deadline, check=False)
    if done.returncode != 0:
        raise StasisError(f"stasis {words[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def fill(redis):
    answers = redis.pipeline(("SET", f"key:{i}", f"value of {i}") for i in range(KEYS))
    assert answers == ["OK"] * KEYS


def missing_keys(redis):
    """How many of the keys of `fill` are not there or not what they were."""
    values = redis.pipeline(("GET", f"key:{i}") for i in range(KEYS))
    return sum(value != f"value of {i}" for i, value in enumerate(values))


def member(archive, name):
    """A JSON member of an archive."""
    with tarfile.open(archive) as tar:
        return json.load(tar.extractfile(name))


def checkpoint(cri, container, archive):
    cri.call("CheckpointContainer", container_id=container, location=str(archive))


def push_image(archive, reference):
    stasis("image", archive, "--push", reference)
    return reference
