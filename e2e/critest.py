"""critest, Kubernetes' own validation of CRI runtimes, directly on containerd and through stasisd.

What of it fails with this containerd on this machine is not the point: with stasisd in between, each test
must end as it does without. Extra arguments go to critest: ./dev critest --ginkgo.focus=Streaming

Its tests take ports of the host and leave shared memory there: each side has namespaces for these.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter

from e2e.paths import CRITEST, TARGETS
from e2e.testbed.images import GROUPS, USERS, Image
from e2e.testbed.testbed import Testbed

STATES = ("passed", "failed", "skipped")
SIDES = DIRECTLY, THROUGH = "directly", "through stasisd"


def web(port):
    """A web server that answers on a port, and looks like nginx where critest looks."""
    start = (b'#!/bin/sh\necho $$ >/run/nginx.pid\necho "httpd on port $1"\n'
             b'exec -a "busybox: master process" /usr/sbin/nginx httpd -f -p "$1" -h /srv\n')
    return Image(["/start", str(port)], files={
        "start": start, "usr/sbin/nginx": "/bin/busybox", "srv/index.html": b"<h1>here</h1>\n"})


def users(user, passwd="", group=""):
    return Image(["/bin/sh"], user=user, files={
        "etc/passwd": f"{USERS}www-data:x:33:33::/:/bin/sh\n{passwd}".encode(),
        "etc/group": f"{GROUPS}www-data:x:33:\n{group}".encode()}, mode=0o644)


def file(name):
    return Image(["/bin/sh"], files={name: b""}, mode=0o644)


KUBERNETES = {
    # Debian's busybox has neither ipcs nor pgrep. (Its shell runs ls without a look at /bin/ls, so that
    # the test of MaskedPaths, which masks that, fails.)
    "busybox:1.29-2": Image(["/bin/sh"], programs=["/usr/bin/ipcs"], files={
        "usr/bin/pgrep": b'#!/bin/sh\nexec pidof "$@"\n',
        "etc/passwd": f"{USERS}nobody:x:65534:65534::/:/bin/sh\n".encode(),
        "etc/group": f"{GROUPS}nobody:x:65534:\n".encode()}),
    "nginx:1.14-2": web(80),
    "httpd:2.4.39-4": web(80),
    "nonewprivs:1.3": Image(["/euid"], files={"euid": TARGETS / "euid"}, mode=0o4755),
}
# One is missing: test-image-digest is asked for by the digest of an image that only gcr.io has.
CRI_TOOLS = {
    "hostnet-nginx-amd64:latest": web(12003),
    "test-image-user-uid:latest": users("1002"),
    "test-image-user-username:latest": users("www-data"),
    "test-image-user-uid-group:latest": users("1003:1004"),
    "test-image-user-username-group:latest": users("www-data:1004"),
    "test-image-predefined-group:latest": users(
        "1000", group="group-defined-in-image:x:50000:user\n"),
    "test-image-latest:latest": file("latest"),
    "test-image-tag:test": file("test"),
    "test-image-tag:all": file("all"),
    **{f"test-image-{i}:latest": file(f"different-{i}") for i in (1, 2, 3)},
    **{f"test-image-tags:{i}": file("same") for i in (1, 2, 3)},
}
REGISTRIES = {"registry.k8s.io/e2e-test-images": KUBERNETES, "gcr.io/k8s-staging-cri-tools": CRI_TOOLS}


def outcomes(report):
    """How each test of a report of ginkgo ended, and why, by name; without those that no filter chose."""
    found = {}
    for spec in json.loads(report.read_text())[0]["SpecReports"] or ():
        why = " ".join(spec.get("Failure", {}).get("Message", "").split())
        if spec["LeafNodeType"] != "It" or (spec["State"] == "skipped" and not why):
            continue
        name = " ".join([*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"]])
        state = spec["State"] if spec["State"] in STATES else "failed"
        found[name] = state, re.sub(r"Unexpected error: <[^>]*>: |rpc error: code = ", "", why)
    return found


def run(shim, arguments):
    """critest on a new testbed; gives the outcomes."""
    hosts = [name.partition("/")[0] for name in REGISTRIES]
    with Testbed(shim=shim, stands_for=hosts, host_ports=True) as bed:
        for registry, images in REGISTRIES.items():
            for reference, image in images.items():
                name, _, tag = reference.partition(":")
                bed.registry.push(image, f"{registry.partition('/')[2]}/{name}", tag)
        report, temporary = bed.folder / "report.json", bed.folder / "tmp"
        temporary.mkdir()
        # One seed, one order: what a test leaves behind is met by the same test after it.
        command = [CRITEST, "--runtime-endpoint", bed.cri.endpoint, "--ginkgo.seed=1", "--ginkgo.no-color",
                   "--ginkgo.timeout=30m", f"--ginkgo.json-report={report}", *arguments]
        done = subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, cwd=temporary,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False)
        if not report.exists():
            raise RuntimeError(f"critest: {done.stdout[-2000:]}")
        return outcomes(report)


def both(arguments):
    """The outcomes directly and through stasisd, from two processes side by side: critest mostly waits."""
    command = ["unshare", "--net", "--ipc", sys.executable, "-m", "e2e.critest"]
    running = [subprocess.Popen([*command, side, *arguments], stdout=subprocess.PIPE, text=True)
               for side in SIDES]
    found = []
    for side, process in zip(SIDES, running, strict=True):
        text = process.communicate()[0]
        found.append(json.loads(text.splitlines()[-1]) if process.returncode == 0 else {})
        counts = Counter(state for state, _ in found[-1].values())
        print(f"{side:16}" + "".join(f"{counts[state]:8} {state}" for state in STATES), flush=True)
    return found


def one(side, arguments):
    """What each of the two processes does."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # a new namespace's is down
    print(json.dumps(run(side == THROUGH, arguments)))
    return 0


def state(found, name):
    return found[name][0] if name in found else "not run"


def show(names, direct, through):
    for name in names:
        print(f"  {name}")
        for side, found in zip(SIDES, (direct, through), strict=True):
            print(f"    {side}: {state(found, name)} {found.get(name, ('', ''))[1][:300]}".rstrip())


def main(arguments):
    if arguments and arguments[0] in SIDES:
        return one(arguments[0], arguments[1:])
    direct, through = both(arguments)
    if not direct or not through:
        print("critest: no test ran", file=sys.stderr)
        return 1
    alike = [name for name in sorted(direct) if state(direct, name) == state(through, name)]
    for why, count in Counter(direct[name][1] for name in alike
                              if state(direct, name) == "skipped").most_common():
        print(f"  {count} skipped: {why}")
    for name in alike:
        if state(direct, name) == "failed":
            print(f"  fails either way: {name}: {direct[name][1][:120]}")
    names = sorted({*direct, *through} - set(alike))
    if not names:
        print("every test ended the same")
        return 0
    print(f"{len(names)} of {len(direct)} tests did not end the same:")
    show(names, direct, through)
    print("these once more:")
    direct, through = both(["--ginkgo.focus=" + "|".join(map(re.escape, names))])
    again = [name for name in names if name not in direct or state(direct, name) != state(through, name)]
    show(again, direct, through)
    print(f"{len(again)} of {len(names)} did not end the same again")
    return 1 if again else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
