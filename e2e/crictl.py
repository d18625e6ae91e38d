"""crictl, as a user runs it: all that is done is shown as commands of a shell."""

import json
import os
import subprocess

from e2e.paths import CRICTL


class CrictlError(Exception):
    """What crictl said when it did not succeed."""


class Crictl:
    """crictl on one CRI socket, in a folder with its configuration and those of pods and containers."""

    def __init__(self, endpoint, folder, show):
        self.folder, self.show = folder, show
        self.configuration = self.write("crictl.json", {
            "runtime-endpoint": endpoint, "image-endpoint": endpoint, "timeout": 120})
        show(f"export CRI_CONFIG_FILE={folder / self.configuration}")

    def write(self, name, content):
        """A file in the folder, in which the commands run; gives its name."""
        text = json.dumps(content)
        (self.folder / name).write_text(text)
        self.show(f"echo '{text}' >{name}")
        return name

    def __call__(self, *words):
        """Runs a command and gives what it printed."""
        self.show(f"crictl {' '.join(map(str, words))}")
        done = subprocess.run([CRICTL, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False, cwd=self.folder,
                              env={**os.environ, "CRI_CONFIG_FILE": self.configuration})
        if done.returncode != 0:
            raise CrictlError(f"crictl {words[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def ask(self, name, *words):
        """The JSON that a command prints."""
        return json.loads(self(name, "-o", "json", *words))
