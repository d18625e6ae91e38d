"""stasis-node on root folders laid out as each distribution lays out its own: what the kubelet is told, and
that everything is back byte for byte afterwards, also when it is killed at any of its steps."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.paths import BIN, ROOT
from e2e.wait import until

NODE = BIN / "stasis-node"
OURS = "unix:///run/stasis/stasis.sock"
CONTAINERD = "unix:///run/containerd/containerd.sock"
UNITS = "etc/systemd/system/"

pytestmark = pytest.mark.skipif(not NODE.exists(), reason="stasis-node is not built")

KUBEADM_UNIT = {UNITS + "kubelet.service.d/10-kubeadm.conf": (
    "[Service]\nEnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\nEnvironmentFile=-/etc/default/kubelet\n"
    "ExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n"),
    "usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet\n"}
KUBELET_CONFIG = ("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
                  "cgroupDriver: systemd\ncontainerRuntimeEndpoint: %s\nstaticPodPath: /etc/kubernetes/manifests\n")


def flags(endpoint):
    return f'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint={endpoint} --pod-infra-container-image=pause:3.9"\n'


# The files of each distribution; the one that tells the kubelet its runtime; the runtime's socket.
LAYOUTS = {
    "kubeadm": (KUBEADM_UNIT | {"var/lib/kubelet/kubeadm-flags.env": flags("unix:///var/run/containerd/containerd.sock"),
                                "var/lib/kubelet/config.yaml": KUBELET_CONFIG % '""'},
                "var/lib/kubelet/kubeadm-flags.env", "unix:///var/run/containerd/containerd.sock"),
    "kubeadm-config": (KUBEADM_UNIT | {"var/lib/kubelet/kubeadm-flags.env": 'KUBELET_KUBEADM_ARGS=""\n',
                                       "var/lib/kubelet/config.yaml": KUBELET_CONFIG % CONTAINERD},
                       "var/lib/kubelet/config.yaml", CONTAINERD),
    "cri-o": (KUBEADM_UNIT | {"var/lib/kubelet/kubeadm-flags.env": flags("unix:///var/run/crio/crio.sock"),
                              "var/lib/kubelet/config.yaml": KUBELET_CONFIG % '""'},
              "var/lib/kubelet/kubeadm-flags.env", "unix:///var/run/crio/crio.sock"),
    "k3s": ({UNITS + "k3s.service": "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server\n",
             "etc/rancher/k3s/config.yaml": "kubelet-arg:\n  - max-pods=50\n"},
            "etc/rancher/k3s/config.yaml.d/90-stasis.yaml", "unix:///run/k3s/containerd/containerd.sock"),
    "rke2": ({"usr/local/lib/systemd/system/rke2-server.service": "[Service]\n",
              "usr/local/lib/systemd/system/rke2-agent.service": "[Service]\n",
              UNITS + "multi-user.target.wants/rke2-agent.service": Path("/usr/local/lib/systemd/system/rke2-agent.service")},
             "etc/rancher/rke2/config.yaml.d/90-stasis.yaml", "unix:///run/k3s/containerd/containerd.sock"),
    "k0s": ({UNITS + "k0sworker.service": "[Unit]\n[Service]\nExecStart=/usr/local/bin/k0s worker --token-file=/etc/k0s/token\n"},
            UNITS + "k0sworker.service.d/90-stasis-endpoint.conf", "unix:///run/k0s/containerd.sock"),
    "microk8s": ({"var/snap/microk8s/1234/args/kubelet": "--root-dir=${SNAP_COMMON}/var/lib/kubelet\n"
                  "# --container-runtime-endpoint=none\n--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n",
                  "var/snap/microk8s/current": Path("1234")},
                 "var/snap/microk8s/current/args/kubelet", "unix:///var/snap/microk8s/common/run/containerd.sock"),
}


class Node:
    def __init__(self, folder, layout):
        self.root = folder / "root"
        self.files, self.told, self.runtime = LAYOUTS[layout]
        (self.root / "var/lib").mkdir(parents=True)
        for name, content in self.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(content) if isinstance(content, Path) else path.write_text(content)
        self.release = folder / "1.0-test"
        (self.release / "bin").mkdir(parents=True)
        (self.release / "bin" / "stasisd").write_text("the agent")
        shutil.copytree(ROOT / "deploy" / "systemd", self.release / "systemd")

    def command(self, verb, *arguments):
        release = ["--release", self.release] if verb == "install" else []
        return [str(part) for part in (NODE, "--root", self.root, "--offline", verb, *release, *arguments)]

    def run(self, verb, *arguments):
        done = subprocess.run(self.command(verb, *arguments), capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def killed_at(self, step, verb):
        """Runs `verb` and kills it before its step-th call that changes a file; whether it got so far."""
        calls = "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,symlink,fsync,syncfs,fchmod,write"
        done = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", f"inject={calls}:signal=KILL:when={step}",
                               *self.command(verb)], capture_output=True, timeout=60)
        return done.returncode != 0

    def text(self, name):
        path = self.root / name
        return path.read_text() if path.is_file() else ""

    def picture(self):
        """Everything below the root: what, whose, which mode, which time, which bytes."""
        seen = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            content = (os.readlink(path) if path.is_symlink() else
                       path.read_bytes() if path.is_file() else None)
            seen[str(path.relative_to(self.root))] = (oct(status.st_mode), status.st_uid, status.st_gid, content,
                                                      status.st_mtime_ns if path.is_file() else 0)
        return seen

    def sends_kubelet_to_us(self):
        return OURS in self.text(self.told)

    def assert_kubelet_has_a_runtime(self):
        """As systemd and the kubelet would find it at a boot right now."""
        if not self.sends_kubelet_to_us():
            return
        enabled = subprocess.run(["systemctl", f"--root={self.root}", "is-enabled", "stasisd.socket"],
                                 capture_output=True, text=True)
        assert enabled.stdout == "enabled\n", enabled
        assert (self.root / "opt/stasis/releases/1.0-test/bin/stasisd").read_text() == "the agent"
        assert "/opt/stasis/releases/1.0-test/bin/stasisd " in self.text(UNITS + "stasisd.service")
        assert self.text("etc/stasis/node.env").endswith(f"STASIS_RUNTIME_ENDPOINT={self.runtime}\n")
        assert self.text("etc/stasis/stasisd.toml")


@pytest.fixture(params=LAYOUTS)
def node(request, tmp_path):
    return Node(tmp_path, request.param)


@pytest.fixture
def kubeadm(tmp_path):
    return Node(tmp_path, "kubeadm")


def test_the_kubelet_is_sent_to_us_and_everything_is_put_back(node):
    before = node.picture()
    code, said = node.run("install")
    assert code == 0 and "to be restarted by you (--offline)" in said
    assert node.sends_kubelet_to_us()
    node.assert_kubelet_has_a_runtime()
    assert node.run("status")[0] == 0
    assert node.run("uninstall")[0] == 0
    assert node.picture() == before
    assert node.run("status") == (3, "absent\n")


def test_a_second_installation_changes_nothing(node):
    node.run("install")
    first = node.picture()
    assert node.run("install") == (0, "")
    assert node.picture() == first


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_killed_at_every_step(node, verb):
    before, step, more = node.picture(), 0, True
    while more:
        step += 1
        if verb == "uninstall":
            node.run("install")
        more = node.killed_at(step, verb)
        node.assert_kubelet_has_a_runtime()
        if verb == "install":
            assert node.run("install")[0] == 0
            assert node.sends_kubelet_to_us()
            node.assert_kubelet_has_a_runtime()
        assert node.run("uninstall")[0] == 0
        assert node.picture() == before, f"killed at step {step}"
    assert step > 20


@pytest.mark.parametrize("runs", [True, False])
def test_what_a_stasisd_remembers_goes_only_when_none_runs(kubeadm, runs):
    kubeadm.run("install")
    containers = kubeadm.root / "var/lib/stasis/containers"
    containers.mkdir()
    with open(containers.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if runs else fcntl.LOCK_UN)
        assert kubeadm.run("uninstall")[0] == 0
    assert containers.exists() == runs


def test_what_others_wrote_meanwhile_stays(kubeadm):
    kubeadm.run("install")
    path = kubeadm.root / kubeadm.told
    path.write_text(path.read_text().replace("pause:3.9", "pause:3.10"))
    assert kubeadm.run("uninstall")[0] == 0
    assert path.read_text() == kubeadm.files[kubeadm.told].replace("pause:3.9", "pause:3.10")


def test_an_upgrade_by_kubeadm_is_repaired(kubeadm):
    kubeadm.run("install")
    path = kubeadm.root / kubeadm.told
    rewritten = flags("unix:///run/containerd/containerd.sock")
    path.write_text(rewritten)
    assert kubeadm.run("status")[0] == 1
    assert kubeadm.run("install")[0] == 0
    assert kubeadm.sends_kubelet_to_us()
    kubeadm.run("uninstall")
    assert path.read_text() == rewritten


def test_a_bypass_sends_the_kubelet_back_until_somebody_asks(node):
    told = node.text(node.told)
    node.run("install")
    assert node.run("bypass", "--reason", "it does not start")[0] == 0
    assert node.text(node.told) == told
    code, said = node.run("status")
    assert code == 3 and "bypassed" in said and "it does not start" in said
    assert node.run("install")[0] == 0
    assert node.sends_kubelet_to_us()


def test_an_upgrade_replaces_the_programs_and_keeps_the_way_back(kubeadm):
    before = kubeadm.picture()
    kubeadm.run("install")
    kubeadm.release = kubeadm.release.rename(kubeadm.release.with_name("1.1-test"))
    assert kubeadm.run("install")[0] == 0
    assert "/opt/stasis/releases/1.1-test/bin/stasisd " in kubeadm.text(UNITS + "stasisd.service")
    kubeadm.run("uninstall")
    assert kubeadm.picture() == before


def waiters(path):
    """Processes that wait for a lock on the file (proc_locks(5))."""
    status = path.stat()
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return sum(" -> " in line and name in line for line in Path("/proc/locks").read_text().splitlines())


def test_who_waited_for_a_lock_that_was_taken_away_waits_for_the_new_one(kubeadm):
    kubeadm.run("install")
    path = kubeadm.root / "var/lib/stasis/node/lock"
    with open(path) as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        waiting = subprocess.Popen(["timeout", "60", *kubeadm.command("bypass")])
        until(lambda: waiters(path), what="somebody who waits")
        path.unlink()  # as an uninstallation does at its end
        with open(path, "w") as second:
            fcntl.flock(second, fcntl.LOCK_EX)
            first.close()
            until(lambda: waiters(path) or waiting.poll() is not None, what="the next wait")
            assert waiting.poll() is None and kubeadm.sends_kubelet_to_us()
    assert waiting.wait(10) == 0 and not kubeadm.sends_kubelet_to_us()


def test_a_bypass_where_nothing_is_installed_leaves_nothing(kubeadm):
    before = kubeadm.picture()
    code, said = kubeadm.run("bypass")
    assert code == 1 and "nothing is installed" in said
    assert kubeadm.picture() == before


def test_a_mended_configuration_ends_a_bypass_and_the_same_one_does_not(kubeadm, tmp_path):
    config, said = tmp_path / "stasisd.toml", tmp_path / "said"
    config.write_text('api-tls-cert = "/nowhere"\n')
    kubeadm.run("install", "--config", config)
    kubeadm.run("bypass")
    words = [NODE, "--root", kubeadm.root, "--offline", "run", "--interval=1", "--release", kubeadm.release,
             "--config", config]
    with open(said, "wb") as log:
        running = subprocess.Popen(words, stderr=log)
    try:
        until(lambda: "the kubelet goes around stasisd" in said.read_text(), what="a look at the bypass")
        assert not kubeadm.sends_kubelet_to_us()
        config.write_text('log-level = "debug"\n')
        until(kubeadm.sends_kubelet_to_us, what="the end of the bypass")
    finally:
        running.kill()
        running.wait()


def test_a_kernel_without_what_a_checkpoint_needs_is_refused(kubeadm):
    before = kubeadm.picture()
    command = [word for word in kubeadm.command("install") if word != "--offline"]
    done = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", "inject=kcmp:error=ENOSYS", *command],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "kcmp" in done.stderr and "Take a newer one" in done.stderr
    assert kubeadm.picture() == before


@pytest.mark.parametrize("layout, change, says", [
    ("kubeadm", {"etc/default/kubelet": "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=unix:///a"}, "leave one"),
    ("kubeadm", {"var/lib/kubelet/kubeadm-flags.env": flags(OURS)}, "put the runtime's socket"),
    ("kubeadm", {UNITS + "k3s.service": "[Service]\n"}, "--distribution"),
    ("k3s", {UNITS + "k3s.service": "[Service]\nExecStart=/k3s server --kubelet-arg=v=4\n"}, "config.yaml"),
    ("k3s", {"etc/rancher/k3s/config.yaml": "kubelet-arg: [container-runtime-endpoint=unix:///a]\n"}, "take that"),
    ("k3s", {UNITS + "k3s.service": "[Service]\nExecStart=/k3s server --config /etc/k3s.yaml\n"}, "move what is in"),
    ("k3s", {UNITS + "k3s.service.env": "K3S_CONFIG_FILE=/etc/k3s.yaml\n"}, "move what is in"),
    ("k3s", {"etc/rancher/k3s/config.yaml.d/99-mine.yml": "kubelet-arg:\n  - v=4\n"}, "write kubelet-arg+"),
    ("k3s", {"etc/rancher/k3s/config.yaml.d/10-mine.yml": "kubelet-arg: [container-runtime-endpoint=unix:///a]\n"}, "take that"),
    ("k0s", {UNITS + "k0sworker.service": "[Service]\nExecStart=/k0s worker --kubelet-extra-args=-v=1\n"}, "by hand"),
    ("kubeadm-config", {"var/lib/kubelet/config.yaml": "{}"}, "JSON"),
    ("kubeadm-config", {"etc/default/kubelet": "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubelet.d\n",
                        "etc/kubelet.d/more/10-mine.conf": KUBELET_CONFIG % CONTAINERD}, "wins over that of"),
    ("kubeadm-config", {"etc/default/kubelet": "KUBELET_EXTRA_ARGS=--config-dir=$MINE\n"}, "as an absolute path"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_told_is_refused_and_nothing_touched(tmp_path, layout, change, says):
    node = Node(tmp_path, layout)
    for name, content in change.items():
        (node.root / name).parent.mkdir(parents=True, exist_ok=True)
        (node.root / name).write_text(content)
    before = node.picture()
    code, said = node.run("install")
    assert code == 1 and says in said
    assert node.picture() == before


def test_drop_ins_of_the_kubelet_that_name_no_runtime_are_no_matter(tmp_path):
    node = Node(tmp_path, "kubeadm-config")
    for name, content in (("etc/default/kubelet", "KUBELET_EXTRA_ARGS=--config-dir /etc/kubelet.d\n"),
                          ("etc/kubelet.d/10-mine.conf", "maxPods: 50\n"),
                          ("etc/kubelet.d/20-not-read.yaml", KUBELET_CONFIG % CONTAINERD)):
        (node.root / name).parent.mkdir(parents=True, exist_ok=True)
        (node.root / name).write_text(content)
    assert node.run("install")[0] == 0
    assert node.sends_kubelet_to_us()


def test_the_capabilities_of_the_charts_pod_are_enough(node):
    before = node.picture()
    for verb in ["install", "uninstall"]:
        done = subprocess.run(["setpriv", "--bounding-set=-all,+chown", "--", *node.command(verb)],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert node.picture() == before


def credentials(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names or ["token", "ca.crt", "tls.crt", "tls.key"]:
        (folder / name).write_text(f"the {name}")
    return folder


@pytest.mark.parametrize("names, says", [
    ([], "nothing tells where the API server is"), (["client-ca.crt", "tls.crt", "tls.key", "ca.crt"], "no token"),
    (["tls.crt"], "no tls.key"), (["none"], "has no token")], ids=["address", "token", "key", "all"])
def test_credentials_that_are_not_whole_are_refused(kubeadm, tmp_path, names, says):
    before = kubeadm.picture()
    code, said = kubeadm.run("install", "--credentials", credentials(tmp_path / "credentials", *names))
    assert code == 1 and says in said
    assert kubeadm.picture() == before


def test_no_credentials_are_left_by_an_installation_that_is_refused(kubeadm, tmp_path):
    (kubeadm.root / kubeadm.told).write_text(flags(OURS))
    before = kubeadm.picture()
    code, said = kubeadm.run("install", "--credentials", credentials(tmp_path / "credentials"),
                             "--api-server=https://10.0.0.1")
    assert code == 1 and "put the runtime's socket" in said
    assert kubeadm.picture() == before


def test_what_the_agent_serves_its_api_with_is_handed_over_and_taken_back(kubeadm, tmp_path):
    before = kubeadm.picture()
    credentials(tmp_path)
    running = subprocess.Popen([NODE, "--root", kubeadm.root, "--offline", "run", "--interval=1", "--release",
                                kubeadm.release, "--credentials", tmp_path],
                               env={"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"})
    token = kubeadm.root / "run/stasis/credentials/token"
    until(kubeadm.sends_kubelet_to_us, what="the installation")
    assert token.read_text() == "the token" and token.stat().st_mode & 0o777 == 0o600
    options = kubeadm.text("etc/stasis/stasisd.toml")
    assert 'api-server = "https://10.0.0.1:443"\n' in options and "api-tls-key" in options and "client" not in options
    for name, place in (("token", "run/stasis/credentials/token"), ("tls.crt", "etc/stasis/tls/tls.crt")):
        (tmp_path / name).write_text("another")
        until(lambda: (kubeadm.root / place).read_text() == "another", what=f"the new {name}")
    running.terminate()
    assert running.wait(10) == 0
    assert kubeadm.run("uninstall")[0] == 0
    for folder in ["run/stasis", "run"]:
        (kubeadm.root / folder).rmdir()  # a folder of the socket's unit, and one that every node has
    assert kubeadm.picture() == before
