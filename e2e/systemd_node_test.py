"""The units and the installer under a real systemd, which is process 1 of a root folder of its own. The agent
is the release that a node gets, before a real containerd; the kubelet's service only shows what it was told."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.paths import BIN, ROOT
from e2e.wait import until

HIERARCHY = Path("/sys/fs/cgroup/systemd")
OURS, CONTAINERD = "unix:///run/stasis/stasis.sock", "unix:///run/containerd/containerd.sock"
TARGETS = ["sysinit", "basic", "sockets", "multi-user", "shutdown", "umount"]
FLAGS = 'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=%s --v=2"\n'
KUBELET = """[Unit]
Wants=containerd.service
[Service]
EnvironmentFile=/var/lib/kubelet/kubeadm-flags.env
ExecStart=/bin/bash -c 'for word; do [[ $word != *=unix://* ]] || test -S $${word#*=unix://} || exit 1; done; \
 echo "$@" >/run/told; exec sleep infinity' told $KUBELET_KUBEADM_ARGS
Restart=always
RestartSec=1
StartLimitIntervalSec=0
"""
RUNTIME = "[Service]\nExecStart=/usr/bin/containerd --config /etc/containerd.toml\n"
RUNTIME_CONFIG = 'version = 2\nroot = "/run/c/root"\nstate = "/run/c/state"\n'

pytestmark = [
    pytest.mark.skipif(not (BIN / "stasis-node").exists(), reason="stasis-node is not built"),
    pytest.mark.skipif(not Path("/lib/systemd/systemd").exists(), reason="there is no systemd"),
]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    made = subprocess.run([ROOT / "deploy" / "bundle.sh", BIN, folder], check=True, capture_output=True, text=True)
    return Path(made.stdout.strip())


class Host:
    def __init__(self, folder, release):
        self.root, self.release, self.process = folder / "root", release, None
        self.log = open(folder / "boot.log", "wb")
        self.cgroup = HIERARCHY / f"stasis-test-{os.getpid()}"
        for name in ["usr", "etc", "proc", "sys", "run", "dev", "tmp", "opt/from", "units", "var/lib/kubelet"]:
            (self.root / name).mkdir(parents=True)
        for name in ["bin", "sbin", "lib", "lib64"]:
            (self.root / name).symlink_to(f"usr/{name}")
        for name in ["passwd", "group", "ld.so.cache"]:
            shutil.copy(f"/etc/{name}", self.root / "etc")
        self.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        self.write("etc/containerd.toml", RUNTIME_CONFIG)
        self.write("var/lib/kubelet/kubeadm-flags.env", FLAGS % CONTAINERD)
        self.write("units/containerd.service", RUNTIME)
        self.write("units/kubelet.service", KUBELET)
        for name in TARGETS:
            self.write(f"units/{name}.target", "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n")
        self.write("units/multi-user.target",
                   "[Unit]\nAllowIsolate=yes\nRequires=basic.target\nAfter=basic.target\nWants=kubelet.service\n")
        self.write("units/basic.target", "[Unit]\nRequires=sysinit.target\nWants=sockets.target\nAfter=sockets.target\n")
        shutil.copy(BIN / "stasis-node", self.root / "opt/from")
        shutil.copytree(release, self.root / "opt/from" / release.name)

    def write(self, name, text):
        (self.root / name).write_text(text)

    def boot(self):
        self.cgroup.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts",
             ROOT / "e2e" / "systemd_host.sh", self.root, self.cgroup], stdout=self.log, stderr=self.log)
        until(lambda: self.run("systemctl", "is-active", "multi-user.target").returncode == 0, seconds=30,
              what="systemd to be up")

    def power_off(self):
        """All at once, as a power cut does it."""
        self.process.kill()
        self.process.wait()
        for folder in sorted(self.cgroup.rglob("*/"), reverse=True):
            until(lambda: remove_cgroup(folder), seconds=10, what=f"{folder} to be empty")
        until(lambda: remove_cgroup(self.cgroup), seconds=10, what="the host's cgroup to be empty")

    def run(self, *command):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        inside = ["nsenter", "-t", children[0], "-m", "-p", "-n", "-r", "-w"] if children else ["false"]
        return subprocess.run([*inside, *map(str, command)], capture_output=True, text=True, timeout=120)

    def node(self, verb, *arguments):
        if verb == "install":
            arguments = ["--release", f"/opt/from/{self.release.name}"]
        return self.run("/opt/from/stasis-node", verb, *arguments)

    def told(self):
        return self.run("cat", "/run/told").stdout

    def answers(self):
        return self.run(f"/opt/stasis/releases/{self.release.name}/bin/stasisd", "--probe").stdout.startswith("containerd")


def remove_cgroup(folder):
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


@pytest.fixture
def host(tmp_path, release):
    if not HIERARCHY.is_dir():
        pytest.skip("there is no cgroup hierarchy name=systemd")
    host = Host(tmp_path, release)
    try:
        host.boot()
        until(lambda: host.told(), what="the kubelet's service")
        yield host
    finally:
        host.power_off()


@pytest.fixture
def installed(host):
    done = host.node("install")
    assert done.returncode == 0, done.stderr + (host.root.parent / "boot.log").read_text(errors="replace")[-3000:]
    return host


def test_it_is_installed_and_taken_out_while_the_node_runs(host):
    assert CONTAINERD in host.told()
    done = host.node("install")
    assert done.returncode == 0, done.stderr
    assert OURS in host.told() and host.answers()
    assert host.node("status").returncode == 0
    done = host.node("uninstall")
    assert done.returncode == 0, done.stderr
    assert CONTAINERD in host.told()
    assert host.run("ls", "/run/stasis/stasis.sock", "/opt/stasis", "/etc/stasis").stdout == ""
    assert (host.root / "var/lib/kubelet/kubeadm-flags.env").read_text() == FLAGS % CONTAINERD
    # Of a unit whose file is gone systemd keeps the name, as "not-found", until it looks at it for another reason.
    assert "stasisd" not in host.run("systemctl", "list-units", "--all", "--state=loaded").stdout


def test_a_power_cut_leaves_the_kubelet_its_runtime(installed):
    installed.power_off()
    installed.boot()
    # The service fails where the socket that it was told is not there.
    until(lambda: OURS in installed.told(), what="the kubelet's service")
    assert installed.answers()


def test_stasisd_killed_or_stopped_comes_back_when_it_is_called(installed):
    installed.run("systemctl", "kill", "--signal=KILL", "stasisd.service")
    until(installed.answers, seconds=10, what="an answer to a client that tries again")
    installed.run("systemctl", "stop", "stasisd.service")
    assert installed.run("systemctl", "is-active", "stasisd.service").stdout == "inactive\n"
    assert installed.answers()


def test_an_agent_that_cannot_run_is_gone_around(installed):
    agent = installed.root / "opt/stasis/releases" / installed.release.name / "bin" / "stasisd"
    agent.unlink()
    shutil.copy("/bin/false", agent)
    installed.run("systemctl", "kill", "--signal=KILL", "stasisd.service")
    until(lambda: CONTAINERD in installed.told(), seconds=60, what="the kubelet to go around stasisd")
    status = installed.node("status")
    assert status.returncode == 3 and "stasisd ended again and again" in status.stdout


def drop_in(host, *lines):
    """More of stasisd's unit, and the agent started anew with it."""
    folder = host.root / "etc/systemd/system/stasisd.service.d"
    folder.mkdir(exist_ok=True)
    (folder / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "stasisd.service")


def shown(host, unit, name):
    return host.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


def test_an_agent_that_hangs_is_started_again(installed):
    drop_in(installed, "WatchdogSec=4")
    before = shown(installed, "stasisd.service", "MainPID")
    installed.run("kill", "-STOP", before)
    until(lambda: shown(installed, "stasisd.service", "MainPID") not in (before, "0"), seconds=60, what="another agent")
    until(installed.answers, seconds=30, what="its answer")
    assert OURS in installed.told() and installed.node("status").returncode == 0


def test_an_agent_that_always_hangs_is_gone_around(installed):
    drop_in(installed, "WatchdogSec=2", "ExecStart=", "ExecStart=/bin/sleep infinity")
    until(lambda: CONTAINERD in installed.told(), seconds=90, what="the kubelet to go around stasisd")
    assert "bypassed" in installed.node("status").stdout


def test_five_hangs_are_within_the_time_that_failures_are_counted_in():
    unit = (ROOT / "deploy/systemd/stasisd.service").read_text()
    number = lambda name: int(unit.partition(f"\n{name}=")[2].split()[0])
    assert (number("WatchdogSec") + number("RestartSec")) * number("StartLimitBurst") < number("StartLimitIntervalSec")


def test_a_runtime_that_hangs_is_not_held_against_the_agent(installed):
    drop_in(installed, "WatchdogSec=4")
    lives = lambda: shown(installed, "stasisd.service", "WatchdogTimestampMonotonic")
    until(lambda: lives() != "0", seconds=30, what="a sign of life")
    agent, runtime = (shown(installed, unit, "MainPID") for unit in ("stasisd.service", "containerd.service"))
    installed.run("kill", "-STOP", runtime)
    try:
        for _ in range(3):
            last = lives()
            until(lambda: lives() != last, seconds=30, what="the next sign of life")
        assert shown(installed, "stasisd.service", "MainPID") == agent
    finally:
        installed.run("kill", "-CONT", runtime)
    until(installed.answers, seconds=30, what="an answer")


def test_an_api_that_is_not_served_is_told_by_status(installed):
    (installed.root / "etc/stasis/stasisd.toml").write_text('api-listen = "0.0.0.0:0"\n')
    installed.run("systemctl", "restart", "stasisd.service")
    until(lambda: shown(installed, "stasisd.service", "StatusText"), what="what it lacks")
    assert installed.answers()
    done = installed.node("install")  # puts the configuration back
    assert done.returncode == 0, done.stderr
    until(lambda: installed.node("status").returncode == 0, what="all to be well")


def test_the_kubelets_socket_stays_when_the_kubelet_cannot_be_restarted(installed):
    unit = (installed.root / "units/kubelet.service")
    unit.write_text(KUBELET.replace("[Unit]\n", "[Unit]\nRefuseManualStop=yes\n"))
    installed.run("systemctl", "daemon-reload")
    done = installed.node("uninstall")
    assert done.returncode == 1 and "may still use stasisd" in done.stderr, done.stderr
    assert OURS in installed.told() and installed.answers()
    unit.write_text(KUBELET)
    installed.run("systemctl", "daemon-reload")
    done = installed.node("uninstall")
    assert done.returncode == 0, done.stderr
    assert CONTAINERD in installed.told()
    assert (installed.root / "var/lib/kubelet/kubeadm-flags.env").read_text() == FLAGS % CONTAINERD


def test_a_release_that_does_not_answer_never_gets_the_kubelet(host):
    (host.root / "opt/from" / host.release.name / "bin" / "stasisd").unlink()
    shutil.copy("/bin/false", host.root / "opt/from" / host.release.name / "bin" / "stasisd")
    done = host.node("install")
    assert done.returncode == 1 and "the kubelet is not sent to it" in done.stderr
    assert (host.root / "var/lib/kubelet/kubeadm-flags.env").read_text() == FLAGS % CONTAINERD
    assert host.node("uninstall").returncode == 0


def test_a_release_needs_nothing_of_the_node(release, tmp_path):
    place = tmp_path / "opt/stasis/releases" / release.name
    shutil.copytree(release, place)
    for program in ["stasisd", "stasis", "stasis-node"]:
        said = subprocess.run(["chroot", tmp_path, f"/opt/stasis/releases/{release.name}/bin/{program}", "--version"],
                              capture_output=True, text=True)
        assert said.returncode == 0, said.stderr


def test_systemd_finds_nothing_to_say_about_the_units():
    units = sorted((ROOT / "deploy" / "systemd").iterdir())
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    # The programs are not in /usr/bin of this machine; all else would be a mistake.
    assert [line for line in said.stderr.splitlines() if "is not executable" not in line] == []
