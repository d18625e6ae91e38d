"""The testbed itself: what the other tests rest on."""

from e2e.testbed.cri import RESTRICTED


def test_a_container_runs_and_stops(bed, pods):
    pod = pods("plain")
    container = bed.cri.run(pod, "shell", bed.image("busybox"), command=["sh", "-c", "echo up; exec sleep 1000"])
    output = bed.cri.exec(container, "sh", "-c", "cat /proc/1/comm; exit 3")
    assert (output.out, output.code) == ("sleep\n", 3)
    assert bed.cri.log(pod, "shell").endswith("stdout F up\n")
    status = bed.cri.stop(container, timeout=0)
    assert (status["state"], status["exit_code"]) == ("CONTAINER_EXITED", 137)


def test_a_restricted_container_has_no_rights(bed, pods):
    pod = pods("restricted")
    container = bed.cri.run(pod, "redis", bed.image("redis"), security=RESTRICTED)
    status = bed.cri.exec(container, "cat", "/proc/1/status").out
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Name"] == "redis-server"
    assert facts["Uid"] == "1000\t1000\t1000\t1000"
    assert int(facts["CapPrm"], 16) == int(facts["CapBnd"], 16) == 0
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert bed.cri.exec(container, "touch", "/file").code != 0
