"""Trees on the host with namespaces of their own: made again, joined, or refused with the next step."""

import os
import re
import select
import shutil
import subprocess

import pytest

from e2e.host import descendants
from e2e.paths import STASIS
from e2e.wait import until


@pytest.fixture
def mounts(folder):
    """A mount namespace in which nobody else mounts anything, with a folder for the test's own mounts."""
    holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "600"])
    until(lambda: b"sleep" in open(f"/proc/{holder.pid}/cmdline", "rb").read(), what="the namespace")
    (folder / "mounted").mkdir()
    yield holder.pid
    holder.kill()
    holder.wait()


def inside(pid, *words):
    return ["nsenter", "--target", str(pid), "--mount", *map(str, words)]


def run(*words, code=0):
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def started(start, words, folder):
    program = start(*words, "sh", "-c", 'cd "$0"; touch ready; exec sleep 600', folder)
    until(lambda: (program.folder / "ready").exists() and
          open(f"/proc/{program.pid}/comm", encoding="utf-8").read() == "sleep\n", what="the program")
    return program


def dumped(program, pid):
    images = program.folder / "images"
    images.mkdir()
    run(*inside(pid, STASIS, "checkpoint", "--pid", program.pid, "--images-dir", images, "--kill"))
    program.parent.wait(10)
    return images


def restore(pid, images, *options, code=0):
    return run(*inside(pid, STASIS, "restore", "--images-dir", images, "--detach", *options), code=code)


def namespace(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def kill(program):
    for pid in descendants(program.pid):
        os.kill(pid, 9)


def test_mounts_that_are_here_too_come_back_in_a_namespace_of_their_own(start, mounts, folder):
    program = started(start, inside(mounts, "unshare", "--mount"), folder)
    images = dumped(program, mounts)
    restore(mounts, images)
    made = namespace(program.pid, "mnt")
    kill(program)
    assert made not in (namespace(mounts, "mnt"), namespace("self", "mnt"))


def test_mounts_that_are_not_here_are_refused_and_can_be_given(start, mounts, folder):
    mount = f"mount -t ramfs own {folder}/mounted; exec \"$@\""
    program = started(start, inside(mounts, "unshare", "--mount", "sh", "-c", mount, "sh"), folder)
    images = dumped(program, mounts)
    refusal = restore(mounts, images, code=1)
    assert f"{folder}/mounted (own) is not mounted here" in refusal and "--join-ns mnt:PID" in refusal
    run(*inside(mounts, "mount", "-t", "ramfs", "other", folder / "mounted"))
    restore(mounts, images, "--join-ns", f"mnt:{mounts}")
    joined = namespace(program.pid, "mnt")
    kill(program)
    assert joined == namespace(mounts, "mnt")


def test_mounts_of_its_own_come_back_with_what_is_in_them(start, mounts, folder):
    place = folder / "mounted"
    script = (f"mount -t tmpfs -o mode=750 own {place}; mkdir {place}/part {folder}/bound; echo kept >{place}/part/file;"
              f"mount --bind {place}/part {folder}/bound; mount -o remount,ro,bind {folder}/bound; exec \"$@\"")
    program = started(start, inside(mounts, "unshare", "--mount", "sh", "-ec", script, "sh"), folder)
    for time in range(2):
        images = dumped(program, mounts)
        restore(mounts, images)
        images.rename(folder / f"images-{time}")
        look = f"stat -c %a {place}; cat {folder}/bound/file; ! touch {folder}/bound/x 2>&1"
        seen = subprocess.run(["nsenter", "-t", str(program.pid), "--mount", "sh", "-c", look], text=True,
                              capture_output=True, check=False).stdout
        assert seen.startswith("750\nkept\n") and "Read-only" in seen
        assert not (place / "part").exists() and namespace(program.pid, "mnt") != namespace(mounts, "mnt")
    kill(program)


def test_an_automount_is_refused_while_its_daemon_is_asked_and_without_it(start, mounts, folder):
    script = 'cd "$0"; mkfifo asked; exec 5<>asked; mkdir auto; mount -t autofs ' \
             '-o fd=5,pgrp=$$,minproto=5,maxproto=5,indirect own auto; sleep 601 & exec "$@"'
    program = started(start, inside(mounts, "unshare", "--mount", "sh", "-ec", script, folder), folder)
    child = descendants(program.pid)[1]
    (folder / "images").mkdir()

    def refusal(pid):
        return run(*inside(mounts, STASIS, "checkpoint", "--pid", pid, "--images-dir", folder / "images"), code=1)

    assert f"pid {program.pid}, is not in the tree" in refusal(child)
    asked = os.open(folder / "asked", os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen(inside(program.pid, "stat", folder / "auto/wanted")) as looker:
        until(lambda: select.select([asked], [], [], 0)[0], what="a request")
        assert "has just been asked" in refusal(program.pid)
        looker.kill()
    os.close(asked)


def test_processes_with_a_pid_namespace_of_their_own_get_a_new_one_with_a_proc_of_it(start, mounts, folder):
    script = 'cd "$0"; sleep 601 & touch ready; exec sleep 600'
    program = start(*inside(mounts, "unshare", "--pid", "--fork", "--mount-proc"), "sh", "-c", script, folder)
    until((folder / "ready").exists, what="the program")
    root = descendants(program.pid)[1]
    for time in range(2):
        images = folder / f"images-{time}"
        images.mkdir()
        run(*inside(mounts, STASIS, "checkpoint", "--pid", root, "--images-dir", images, "--kill"))
        run(*inside(mounts, STASIS, "restore", "--images-dir", images, "--detach", "--pidfile", folder / "pid"))
        root = int((folder / "pid").read_text(encoding="utf-8"))
        shown = {int(name) for name in os.listdir(f"/proc/{root}/root/proc") if name.isdigit()}
        own = [open(f"/proc/{pid}/status", encoding="utf-8").read().partition("NSpid:")[2].split("\n")[0].split()[-1]
               for pid in descendants(root)]
        assert own[0] == "1" and shown == {int(pid) for pid in own} and len(shown) == 2
    os.kill(root, 9)


@pytest.mark.parametrize("up", [True, False])
def test_a_network_with_a_loopback_device_alone_is_made_again(start, mounts, folder, up):
    loopback = ["sh", "-ec", f'ip link set lo {"up" if up else "down"}; exec "$@"', "sh"]
    program = started(start, inside(mounts, "unshare", "--net", *loopback), folder)
    images = dumped(program, mounts)
    restore(mounts, images)
    own = namespace(program.pid, "net")
    shown = run("nsenter", "--target", program.pid, "--net", "ip", "-brief", "link", "show", "lo")
    kill(program)
    assert own != namespace("self", "net") and ("UP" in shown) is up


TABLES = """ip link set lo up; ip addr add 192.0.2.1 dev lo; ip addr add 2001:db8::1/64 dev lo; ip addr del 127.0.0.1/8 dev lo
ip route add 192.0.2.9 dev lo; ip route add 198.51.100.0/24 via 192.0.2.9; ip route add blackhole 203.0.113.0/24 table 77
ip -6 route add 2001:db8:1::/48 dev lo metric 7; ip rule add fwmark 7 lookup 77; ip rule del pref 32767"""


def test_addresses_routes_and_rules_of_a_network_of_its_own_come_back(start, mounts, folder):
    def shown():
        look = "ip addr; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule"
        return run("nsenter", "--target", program.pid, "--net", "sh", "-ec", look)

    program = started(start, inside(mounts, "unshare", "--net", "sh", "-ec", TABLES + '\nexec "$@"', "sh"), folder)
    # Until a worker of the kernel's has looked at an IPv6 address, it has no route either.
    until(lambda: "tentative" not in shown(), what="the addresses")
    before = shown()
    restore(mounts, dumped(program, mounts))
    after = shown()
    kill(program)
    assert after == before and "blackhole 203.0.113.0/24" in before


FIREWALLS = {
    "nft": ("nft", """nft -f - <<'END'
table inet own {
  chain other { accept; }
  set seen { type ipv4_addr; flags timeout; elements = { 192.0.2.1 timeout 1h } }
  chain input { type filter hook input priority 0; policy drop; ip saddr @seen counter packets 7 bytes 9 accept
                iifname "lo" tcp dport { 80, 443 } ct state new jump other; }
}
END"""),
    "iptables": ("iptables-nft", "iptables-nft -A INPUT -p tcp --dport 80 -m state --state NEW -j ACCEPT;"
                 "iptables-nft -A INPUT -m hashlimit --hashlimit-name own --hashlimit-above 10/sec -j DROP;"
                 "ip6tables-nft -t mangle -A OUTPUT -j MARK --set-mark 7; nft add table inet own"),
    "legacy": ("iptables-legacy", "iptables-legacy -A INPUT -m comment --comment 'a word' -j ACCEPT;"
               "iptables-legacy -t nat -N OTHER; ip6tables-legacy -P INPUT DROP"),
}
LISTS = """nft -s list ruleset 2>/dev/null | grep -v 'xt match'; iptables-nft-save; ip6tables-nft-save
           iptables-legacy-save; ip6tables-legacy-save"""


def rules_of(pid):
    seen = subprocess.run(["nsenter", "--target", str(pid), "--net", "sh", "-c", LISTS], text=True, check=False,
                          capture_output=True).stdout
    # Chains that accept all are iptables' to make or not.
    empty = re.compile(r"\tchain \w+ {\n\t\ttype [^\n]* policy accept;\n\t}\n\n?")
    return sorted(line for line in empty.sub("", seen).splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("kind", FIREWALLS)
def test_the_firewall_of_a_network_of_its_own_comes_back(start, mounts, folder, kind):
    program, script = FIREWALLS[kind]
    if shutil.which(program) is None:
        pytest.skip(f"this machine has no {program}")
    rules = ["sh", "-ec", script + '\nexec "$@"', "sh"]
    program = started(start, inside(mounts, "unshare", "--net", *rules), folder)
    before = rules_of(program.pid)
    restore(mounts, dumped(program, mounts))
    after = rules_of(program.pid)
    kill(program)
    assert after == before and len(before) > 3


# The peer has closed its end, and does not hear of ours.
CLOSING = """
import socket, subprocess, time
server = socket.create_server(("127.0.0.1", 7079)); client = socket.create_connection(("127.0.0.1", 7079))
accepted, _ = server.accept(); server.close(); client.shutdown(socket.SHUT_WR)
while accepted.recv(1): pass
subprocess.run(["nft", "add rule inet own input tcp dport 7079 drop"], check=True)
accepted.shutdown(socket.SHUT_WR)
while client.recv(1): pass
open("made", "w").close()
time.sleep(600)
"""


def test_a_connection_comes_back_that_its_firewall_would_not_let_pass(start, mounts, folder):
    if shutil.which("nft") is None:
        pytest.skip("this machine has no nft")
    script = f"""cd {folder}; ip link set dev lo up; nft add table inet own
    nft 'add chain inet own input {{ type filter hook input priority 0; }}'; exec python3 -c "$0" """
    program = start(*inside(mounts, "unshare", "--net", "sh", "-ec", script, CLOSING))
    until((folder / "made").exists, what="the connection")
    images = folder / "images"
    images.mkdir()
    run(*inside(mounts, STASIS, "checkpoint", "--pid", program.pid, "--images-dir", images, "--kill", "--tcp-established"))
    program.parent.wait(10)
    restore(mounts, images, "--tcp-established")
    seen = run("nsenter", "-t", program.pid, "-n", "ss", "-Htn", "state", "last-ack")
    rules = run("nsenter", "-t", program.pid, "-n", "nft", "list", "ruleset")
    kill(program)
    assert "127.0.0.1:7079" in seen and "tcp dport 7079 drop" in rules


CONNECT = """
import socket, sys
client = socket.socket(); client.settimeout(0.5); client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(sys.argv[1]))
try: client.connect(("127.0.0.1", 7078)); print("connected")
except TimeoutError: print("nothing")
"""
SERVE = """
import socket, time
server = socket.create_server(("127.0.0.1", 7078)); server.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0xc114)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def network():
    """The file of a network namespace in which somebody listens."""
    name = f"stasis-test-{os.getpid()}"
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    path = f"/run/netns/{name}"
    server = subprocess.Popen(["nsenter", f"--net={path}", "python3", "-c", SERVE], stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"ready\n"
    yield path
    server.kill()
    server.communicate()
    run("ip", "netns", "delete", name)


def test_a_network_that_is_locked_passes_nothing_until_the_restore(start, network, folder):
    def connects(mark):
        return run("nsenter", f"--net={network}", "python3", "-c", CONNECT, mark)

    program = started(start, ["nsenter", f"--net={network}"], folder)
    left, images = folder / "left", folder / "images"
    left.mkdir()
    images.mkdir()
    words = STASIS, "checkpoint", "--pid", program.pid, "--network-lock", "nftables", "--images-dir"
    run(*words, left, "--leave-running")
    assert connects(0) == "connected\n"
    run(*words, images, "--kill")
    program.parent.wait(10)
    between = connects(0), connects(0xC114)
    run(STASIS, "restore", "--images-dir", images, "--detach", "--join-ns", f"net:{network}")
    after = connects(0)
    kill(program)
    assert between == ("nothing\n", "connected\n") and after == "connected\n"


def test_a_child_in_a_network_that_cannot_be_made_again_is_refused(start, mounts, folder):
    device = "ip link add own type veth peer name other; tc qdisc add dev own root pfifo"
    script = f'cd "$0"; unshare --net sh -c "{device}; touch made; exec sleep 601" & exec sleep 600'
    program = start(*inside(mounts), "sh", "-c", script, folder)
    until((folder / "made").exists, what="the device")
    images = folder / "images"
    images.mkdir()
    refusal = run(*inside(mounts, STASIS, "checkpoint", "--pid", program.pid, "--images-dir", images), code=1)
    kill(program)
    assert "in another net namespace than the root of its tree: it has traffic control" in refusal


def test_a_network_of_its_own_is_refused_unless_one_is_named(start, mounts, folder):
    script = 'ip link add own type veth peer name other; tc qdisc add dev own root pfifo; exec "$@"'
    device = ["sh", "-ec", script, "sh"]
    program = started(start, inside(mounts, "unshare", "--net", *device), folder)
    images = dumped(program, mounts)
    assert "--join-ns net:/run/netns/NAME" in restore(mounts, images, code=1)
    restore(mounts, images, "--join-ns", "net:/proc/self/ns/net")
    joined = namespace(program.pid, "net")
    kill(program)
    assert joined == namespace("self", "net")


@pytest.mark.parametrize("words, reason", [
    ("net:/etc/passwd", "/etc/passwd is no net namespace"),
    ("uts:/nowhere", "No such file or directory"),
    ("user:1", "start stasis in it"),
    ("nothing", "is not KIND:PID"),
])
def test_what_cannot_be_joined_is_said(start, mounts, folder, words, reason):
    program = started(start, inside(mounts), folder)
    images = dumped(program, mounts)
    done = subprocess.run(inside(mounts, STASIS, "restore", "--images-dir", images, "--join-ns", words),
                          stdin=subprocess.DEVNULL, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0 and reason in done.stdout + done.stderr, done


def test_settings_of_its_network_and_of_its_ipc_come_back(start, mounts, folder):
    settings = {"net/ipv4/ping_group_range": "7\t1000", "net/ipv4/conf/lo/arp_announce": "2",
                "net/ipv4/conf/all/forwarding": "1", "kernel/msgmax": "12345", "kernel/sem": "300\t40000\t500\t128",
                "kernel/shm_rmid_forced": "1"}
    script = "".join(f"echo '{value}' >/proc/sys/{name};" for name, value in settings.items())
    program = started(start, inside(mounts, "unshare", "--net", "--ipc", "sh", "-ec", script + 'exec "$@"', "sh"), folder)
    restore(mounts, dumped(program, mounts))
    seen = run("nsenter", "--target", program.pid, "--net", "--ipc", "cat", *(f"/proc/sys/{name}" for name in settings))
    kill(program)
    assert seen.splitlines() == list(settings.values())


@pytest.mark.parametrize("offset", [-50, 100])
def test_clocks_of_a_time_namespace_of_its_own_go_on(start, mounts, folder, offset):
    words = inside(mounts, "unshare", "--time", f"--monotonic={offset}", f"--boottime={offset}", "--fork")
    program = start(*words, "sh", "-c", 'cd "$0"; touch ready; exec sleep 600', folder)
    until((folder / "ready").exists, what="the program")
    root = descendants(program.pid)[1]
    until(lambda: open(f"/proc/{root}/comm", encoding="utf-8").read() == "sleep\n", what="the program")
    images = folder / "images"
    images.mkdir()
    run(*inside(mounts, STASIS, "checkpoint", "--pid", root, "--images-dir", images, "--kill"))
    program.parent.wait(10)
    restore(mounts, images)
    with open(f"/proc/{root}/timens_offsets", encoding="utf-8") as file:
        offsets = [int(line.split()[1]) for line in file]
    own = namespace(root, "time")
    os.kill(root, 9)
    # They stand still while nothing runs: no more than the whole test takes.
    assert own != namespace("self", "time") and all(offset - 61 < seen <= offset for seen in offsets)
