"""Network devices of trees on the host: bridges, pairs within the tree and with one end outside, and what is on others."""

import json
import os
import re
import subprocess

import pytest

from e2e.host import descendants
from e2e.paths import STASIS
from e2e.wait import until

# Numbers of their own, settings that a new one does not have, addresses and routes through them.
DEVICES = """ip link set lo up
ip link add name b index 7 type bridge ageing_time 12300 mcast_snooping 0
ip link add name e index 9 mtu 1400 address 02:00:00:00:00:09 type veth peer name f index 8
ip link set dev e alias 'a word' txqueuelen 77; ip link set dev f master b; ip link set dev f type bridge_slave hairpin on priority 7
ip addr add 192.0.2.1/24 dev b; ip -6 addr add 2001:db8::1/64 nodad dev b; ip addr add 198.51.100.1/24 dev e
for d in b e f; do ip link set dev $d up; done
ip route add 203.0.113.0/24 via 192.0.2.9; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:77 dev b nud permanent
echo 2 >/proc/sys/net/ipv4/conf/e/rp_filter; echo 1 >/proc/sys/net/ipv6/conf/f/disable_ipv6
"""


@pytest.fixture
def outer():
    """A network namespace in which checkpoints and restores are made, with a bridge."""
    name = f"stasis-devices-{os.getpid()}"
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "add", "outside", "type", "bridge")
    run("ip", "-n", name, "link", "set", "outside", "up")
    yield f"/run/netns/{name}"
    run("ip", "netns", "delete", name)


def run(*words, code=0):
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def inside(network, *words):
    return ["nsenter", f"--net={network}", *words]


def started(start, network, script, folder):
    """A shell in a network of its own that has run the script, and then sleeps."""
    words = inside(network, "unshare", "--net", "sh", "-ec", f'cd "$0"\n{script}\ntouch ready; exec sleep 600', folder)
    program = start(*words)
    until(lambda: (folder / "ready").exists() and
          open(f"/proc/{program.pid}/comm", encoding="utf-8").read() == "sleep\n", what="the program")
    return program


def through(program, network, *options):
    images = program.folder / f"images-{program.images}"
    program.images += 1
    images.mkdir()
    run(*inside(network, STASIS, "checkpoint", "--pid", program.pid, "--images-dir", images, "--kill"))
    program.parent.wait(10)
    run(*inside(network, STASIS, "restore", "--images-dir", images, "--detach", *options))
    return images


def kill(program):
    for pid in descendants(program.pid):
        os.kill(pid, 9)


PASSING = re.compile(r'"[a-z_]+_timer":[0-9.]+,?')


def shown(pid):
    """What of its network is the same whenever somebody looks."""
    look = "ip -d -j link; ip -j addr; ip route | sort; ip -6 route | sort; ip -j neigh show nud permanent; "
    look += "cd /proc/sys/net; grep . ipv4/conf/*/rp_filter ipv6/conf/*/disable_ipv6 ipv6/conf/*/accept_dad"
    return PASSING.sub("", run("nsenter", "--target", pid, "--net", "sh", "-ec", look))


def settled(pid):
    """Once it stands still: ports are let in one after the other."""
    until(lambda: shown(pid) == shown(pid) and "tentative" not in shown(pid), what="the network", seconds=10)
    return shown(pid)


def test_devices_come_back_with_their_numbers_settings_and_addresses(start, outer, folder):
    program = started(start, outer, DEVICES, folder)
    before = settled(program.pid)
    for _ in range(2):
        through(program, outer)
        after = settled(program.pid)
        assert after == before and '"hairpin":true' in before and '"ifindex":9' in before
    kill(program)


def test_a_pair_joins_the_networks_of_two_processes_again(start, outer, folder):
    script = """unshare --net sh -ec 'touch made; exec sleep 601' &
    while [ ! -e made ]; do sleep 0.1; done
    ip link add name here index 5 type veth peer name there netns $! index 6
    ip addr add 192.0.2.1/24 dev here; ip link set dev here up
    nsenter -t $! -n sh -ec 'ip addr add 192.0.2.2/24 dev there; ip link set dev there up'"""
    program = started(start, outer, script, folder)
    through(program, outer)
    inner = [pid for pid in descendants(program.pid) if pid != program.pid]
    run("nsenter", "-t", program.pid, "-n", "ping", "-c1", "-W5", "192.0.2.2")
    there = json.loads(run("nsenter", "-t", inner[0], "-n", "ip", "-j", "link", "show", "there"))[0]
    kill(program)
    assert there["ifindex"] == 6 and there["link_index"] == 5


def test_the_other_end_of_a_pair_is_made_outside(start, outer, folder):
    script = f"""ip link add name in type veth peer name gone; ip addr add 192.0.2.1/24 dev in; ip link set dev in up
    ip link set dev gone netns {os.path.basename(outer)}"""
    program = started(start, outer, script, folder)
    images = folder / "refused"
    images.mkdir()
    report = run(*inside(outer, STASIS, "checkpoint", "--pid", program.pid, "--images-dir", images, "--kill"))
    program.parent.wait(10)
    refusal = run(*inside(outer, STASIS, "restore", "--images-dir", images, "--detach"), code=1)
    assert "--external 'veth[in]:" in refusal and "--external 'veth[in]:" in report
    run(*inside(outer, STASIS, "restore", "--images-dir", images, "--detach", "--external", "veth[in]:new@outside"))
    run(*inside(outer, "ip", "addr", "add", "192.0.2.2/24", "dev", "outside"))
    run(*inside(outer, "ping", "-c1", "-W5", "192.0.2.1"))
    port = json.loads(run(*inside(outer, "ip", "-j", "link", "show", "new")))[0]
    kill(program)
    assert port["master"] == "outside"


def test_a_device_from_outside_takes_the_place_of_one(start, outer, folder):
    name = os.path.basename(outer)
    script = f"ip link add name in index 9 type veth peer name gone; ip link set dev gone netns {name}"
    program = started(start, outer, script, folder)
    before = json.loads(run("nsenter", "-t", program.pid, "-n", "ip", "-j", "link", "show", "in"))[0]
    run(*inside(outer, "ip", "link", "add", "fresh", "type", "veth", "peer", "name", "other"))
    through(program, outer, "--external", "netdev[in]:fresh")
    after = json.loads(run("nsenter", "-t", program.pid, "-n", "ip", "-j", "link", "show", "in"))[0]
    kill(program)
    assert (after["ifindex"], after["address"]) == (9, before["address"])


def test_a_device_on_one_outside_is_made_on_the_one_that_is_named(start, outer, folder):
    probe = subprocess.run(inside(outer, "ip", "link", "add", "probe", "link", "outside", "type", "macvlan"), check=False,
                           capture_output=True)
    if probe.returncode != 0:
        pytest.skip("this kernel has no macvlan")
    script = "echo $$ >pid; while ! ip link show on 2>/dev/null; do sleep 0.1; done; ip link set dev on up"
    words = inside(outer, "unshare", "--net", "sh", "-ec", f'cd "$0"\n{script}\ntouch ready; exec sleep 600', folder)
    program = start(*words)
    until(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), what="the program")
    run(*inside(outer, "ip", "link", "add", "on", "link", "outside", "netns", program.pid, "type", "macvlan", "mode",
                "private"))
    until((folder / "ready").exists, what="the device")
    until(lambda: open(f"/proc/{program.pid}/comm", encoding="utf-8").read() == "sleep\n", what="the program")
    through(program, outer, "--external", "macvlan[on]:outside")
    on = json.loads(run("nsenter", "-t", program.pid, "-n", "ip", "-d", "-j", "link", "show", "on"))[0]
    kill(program)
    assert on["linkinfo"]["info_kind"] == "macvlan" and on["linkinfo"]["info_data"]["mode"] == "private"
    assert "UP" in on["flags"]


@pytest.mark.parametrize("device, reason", [
    ("ip link add name a type veth peer name b; tc qdisc add dev a root pfifo limit 7",
     "traffic control (tc qdisc) on the network device a"),
    ("ip link add name a type veth peer name b; ip link property add dev a altname another",
     "network device a cannot be made as it was"),
    ("ip link add name a type bridge; ip link add name b type veth peer name c; ip link set dev b master a;"
     "bridge fdb add 02:00:00:00:00:77 dev b master static", "a bridge with VLANs, addresses or groups"),
    ("ip link add name a type veth peer name b; ip link add name c link a type macvtap",
     "network device c of the kind macvtap"),
])
def test_what_cannot_be_made_again_is_said_and_a_network_can_be_given(start, outer, folder, device, reason):
    program = started(start, outer, device, folder)
    images = folder / "images"
    images.mkdir()
    report = run(*inside(outer, STASIS, "checkpoint", "--pid", program.pid, "--images-dir", images, "--kill"))
    program.parent.wait(10)
    refusal = run(*inside(outer, STASIS, "restore", "--images-dir", images, "--detach"), code=1)
    assert reason in report and "--join-ns net:/run/netns/NAME" in refusal
    run(*inside(outer, STASIS, "restore", "--images-dir", images, "--detach", "--join-ns", f"net:{outer}"))
    kill(program)
