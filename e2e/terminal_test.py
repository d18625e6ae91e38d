"""A container with `tty: true`: its console is the new container's, its settings are its own."""

import pytest

from e2e import journey
from e2e.testbed.cri import CriError
from e2e.wait import until

# Raw input without echo, and a line every 10 ms.
TALKING = "stty -echo -icanon; i=0; while :; do echo $i; i=$((i + 1)); sleep 0.01; done"


def lines(bed, pod):
    path = bed.logs / pod.config["metadata"]["name"] / "talk.log"
    text = path.read_text() if path.exists() else ""
    return [int(line.split(" ", 3)[3]) for line in text.splitlines()]


def terminal_of(bed, container):
    """What the first process's terminal is set to, and whether its group is in the foreground."""
    settings = bed.cri.exec(container, "stty", "-F", "/dev/pts/0", "-a").out
    _, _, stat = bed.cri.exec(container, "cat", "/proc/1/stat").out.partition(") ")
    state, _, group, session, terminal, foreground, *_ = stat.split()
    return {"echo": " echo " in f" {settings} ".replace("\n", " "),
            "controls": terminal != "0", "foreground": foreground == group, "session": session}


def test_a_console_goes_on_in_another_container(bed, pods, folder):
    pod = pods("console")
    container = bed.cri.run(pod, "talk", bed.image("busybox"), command=["sh", "-c", TALKING], tty=True)
    until(lambda: len(lines(bed, pod)) > 10)
    before = terminal_of(bed, container)
    assert before == {"echo": False, "controls": True, "foreground": True, "session": "1"}
    journey.checkpoint(bed.cri, container, folder / "console.tar")
    image = journey.push_image(folder / "console.tar", f"{bed.registry.address}/console:1")

    again = pods("console-again")
    restored = bed.cri.run(again, "talk", image, tty=True)
    count = len(lines(bed, again))
    until(lambda: len(lines(bed, again)) > count + 10, what="more lines on the console")
    numbers = lines(bed, again)
    assert numbers == list(range(len(numbers)))
    assert terminal_of(bed, restored) == before


def test_without_a_terminal_it_is_refused(bed, pods, folder):
    pod = pods("console-lost")
    container = bed.cri.run(pod, "talk", bed.image("busybox"), command=["sh", "-c", TALKING], tty=True)
    until(lambda: len(lines(bed, pod)) > 10)
    journey.checkpoint(bed.cri, container, folder / "console.tar")
    image = journey.push_image(folder / "console.tar", f"{bed.registry.address}/console-lost:1")
    created = bed.cri.create(pods("console-plain"), "talk", image)
    with pytest.raises(CriError, match="tty: true") as refused:
        bed.cri.call("StartContainer", container_id=created)
    assert refused.value.code == "FailedPrecondition"
