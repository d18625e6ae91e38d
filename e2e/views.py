"""The views of checkpoint images that the agent takes from containerd until it has read them."""

import re
import subprocess


def views(socket):
    """Their names, by the leases and snapshots of the containerd at `socket`."""
    ctr = lambda *words: subprocess.run(["ctr", "-a", socket, "-n", "k8s.io", *words], capture_output=True, text=True,
                                        check=True).stdout
    return set(re.findall(r"^stasis-\w+", ctr("leases", "ls") + ctr("snapshots", "ls"), re.MULTILINE))
