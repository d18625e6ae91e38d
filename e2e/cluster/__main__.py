"""./dev cluster: a Kubernetes cluster with two nodes that run stasisd, for trying things by hand."""

import argparse
import sys

from e2e.cluster import agents, control_plane, node
from e2e.cluster.cluster import DEFAULT_VERSION, Cluster
from e2e.paths import BIN, BUILD, CACHE

CURRENT = BUILD / "cluster"  # a link to the folder of the cluster that `up` made


def runs(folder):
    """Whether a cluster's machines are up: they are not after the end of this machine."""
    return (folder / "cluster.json").exists() and Cluster(folder).control_plane.is_up()


def up(arguments):
    if CURRENT.is_symlink() and not runs(CURRENT.readlink()):
        print(f"cluster: {CURRENT.readlink()} has ended; taking away what is left")
        down(arguments)
    if CURRENT.is_symlink():
        print(f"cluster: there is one already, in {CURRENT.readlink()}: ./dev cluster down", file=sys.stderr)
        return 1
    cluster = Cluster.up(arguments.kubernetes)
    CURRENT.symlink_to(cluster.folder)
    agents.serve_api(cluster)
    cluster.keep()
    for name in ("redis", "busybox", "python"):
        print(f"image      {cluster.image(name)}")
    print(f"image      {agents.push_image(cluster)}")
    print(f"folder     {cluster.folder}\n\nexport KUBECONFIG={cluster.kubectl.kubeconfig}\n"
          f"export REGISTRY={cluster.control_plane.registry.address}\n"
          f"export PATH={cluster.kubectl.program.parent}:{BIN}:{CACHE / 'bin'}:$PATH")
    return 0


def down(_):
    if CURRENT.is_symlink():
        if (CURRENT / "cluster.json").exists():
            Cluster(CURRENT.readlink()).down()
        CURRENT.unlink()
    return 0


def status(_):
    if not CURRENT.exists():
        print("cluster: none: ./dev cluster up", file=sys.stderr)
        return 1
    cluster = Cluster(CURRENT.readlink())
    for machine in cluster.machines:
        names = control_plane.SERVICES if machine is cluster.control_plane else node.SERVICES
        shown = [f"{name} {'runs' if machine.is_up() and machine.runs(name) else 'ENDED'}" for name in names]
        print(f"{machine.name:14}{machine.address:16}{', '.join(shown)}")
    print(cluster.kubectl("get", "nodes", "-o", "wide"), end="")
    return 0


def main():
    parser = argparse.ArgumentParser(prog="./dev cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up").add_argument("--kubernetes", default=DEFAULT_VERSION, metavar="MINOR")
    verbs.add_parser("down")
    verbs.add_parser("status")
    arguments = parser.parse_args()
    return {"up": up, "down": down, "status": status}[arguments.verb](arguments)


if __name__ == "__main__":
    sys.exit(main())
