"""kubectl, run as the cluster's administrator."""

import json
import subprocess


class KubectlError(Exception):
    """What kubectl said when it did not succeed."""


class Kubectl:
    def __init__(self, program, kubeconfig):
        self.program = program
        self.kubeconfig = kubeconfig

    def __call__(self, *words, stdin=None, deadline=180):
        done = subprocess.run([self.program, "--kubeconfig", self.kubeconfig, *map(str, words)], input=stdin or "",
                              capture_output=True, text=True, timeout=deadline, check=False)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(map(str, words[:4]))}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words):
        return json.loads(self("get", *words, "-o", "json"))

    def apply(self, *objects):
        return self("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List",
                                                          "items": list(objects)}))
