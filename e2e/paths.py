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
PEERS = Path(os.environ.get("STASIS_PEERS") or CACHE / "peers")
