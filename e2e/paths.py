"""Where the tests find what the build made."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("STASIS_BUILD") or ROOT / "build")
BIN = BUILD / "bin"
TARGETS = BUILD / "targets"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stasis"
STASIS = BIN / "stasis"
STASISD = BIN / "stasisd"
PLACEHOLDER = BIN / "stasis-placeholder"
CRI = CACHE / "bin" / "cri"
CRICTL = CACHE / "bin" / "crictl"
CRITEST = CACHE / "bin" / "critest"
LOAD = CACHE / "bin" / "load"
# Checkpoints of the tests, too, are made on a disk that is nearly full.
os.environ.setdefault("STASIS_CHECKPOINT_MIN_FREE", "0")
PEERS = Path(os.environ.get("STASIS_PEERS") or CACHE / "peers")
