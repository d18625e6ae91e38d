"""The chart on a real cluster, by Helm: installed, upgraded and taken away, with every node as it was.

The nodes have no systemd, so what is installed are files: those of a node that kubeadm set up.
"""

import json
import os
import re
import subprocess

import pytest

from e2e.cluster import agents
from e2e.cluster.node import FLAGS, TOLD
from e2e.paths import CACHE, ROOT
from e2e.testbed.rest import make_authority, make_certificate
from e2e.wait import until

HELM = CACHE / "bin" / "helm"
CHART = ROOT / "charts" / "stasis"
OURS = "--container-runtime-endpoint=unix:///run/stasis/stasis.sock "
FOLDERS = ["/etc/systemd/system", "/opt", "/etc/stasis", "/var/lib/stasis/node"]

pytestmark = pytest.mark.skipif(not HELM.exists(), reason="helm is not built: ./dev manifests builds it")


@pytest.fixture(scope="module")
def image(cluster):
    return agents.push_image(cluster)


@pytest.fixture
def helm(cluster):
    def run(*arguments):
        done = subprocess.run([HELM, "--namespace", "stasis", *map(str, arguments)], capture_output=True, text=True,
                              timeout=400, env={**os.environ, "KUBECONFIG": str(cluster.kubectl.kubeconfig)})
        assert done.returncode == 0, done.stdout + done.stderr + cluster.kubectl(
            "-n", "stasis", "get", "pods,events", "-o", "wide")
        if arguments[0] in ("install", "upgrade"):
            # --wait waits for all pods of a DaemonSet but as many as may be unavailable.
            cluster.kubectl("-n", "stasis", "rollout", "status", "daemonset/stasis", "--timeout=170s")
        return done.stdout
    return run


@pytest.fixture
def settings(image):
    repository, _, tag = image.rpartition(":")
    return [f"--set-string=image.repository={repository},image.tag={tag}",
            "--set=node.offline=true,node.distribution=kubelet,node.checkIntervalSeconds=1"]


@pytest.fixture
def nodes(cluster, helm):
    """The cluster's nodes, for a release `stasis` that is gone afterwards."""
    yield cluster.nodes.values()
    if "stasis" in helm("list", "--all", "--short"):
        helm("uninstall", "stasis", "--no-hooks", "--wait", "--timeout=2m")
    cluster.kubectl("delete", "namespace", "stasis", "--now", "--wait=true", "--ignore-not-found")
    for machine in cluster.nodes.values():
        machine.path(TOLD).write_text(FLAGS)


def picture(machine):
    """Of what the machine wrote itself: a package that is installed on this one meanwhile shows on all of them. A
    removed file of this machine's is there as a device (overlayfs, "whiteouts"), and a folder may be a copy."""
    seen = {TOLD: machine.path(TOLD).read_bytes()}
    for folder in FOLDERS:
        top = machine.own(folder)
        for path in sorted([top, *top.rglob("*")]) if top.exists() else []:
            name = f"{folder}/{path.relative_to(top)}"
            if not (path.is_dir() and os.path.isdir(name)):
                seen[name] = path.read_bytes() if path.is_file() else path.is_symlink()
    return seen


def test_helm_installs_upgrades_and_leaves_the_nodes_as_they_were(nodes, helm, settings):
    before = [picture(machine) for machine in nodes]
    helm("install", "stasis", CHART, "--create-namespace", "--wait", "--timeout=3m", *settings)
    for machine in nodes:
        assert OURS in machine.path(TOLD).read_text()
        assert 'log-level = "info"' in machine.path("/etc/stasis/stasisd.toml").read_text()
    helm("upgrade", "stasis", CHART, "--wait", "--timeout=3m", *settings,
         "--set=agent.logLevel=debug,updateStrategy.maxUnavailable=2,podLabels.new=yes")
    for machine in nodes:
        assert 'log-level = "debug"' in machine.path("/etc/stasis/stasisd.toml").read_text()
    helm("uninstall", "stasis", "--wait", "--timeout=5m")
    assert [picture(machine) for machine in nodes] == before


def test_a_renewed_certificate_reaches_the_nodes_without_a_restart(cluster, nodes, helm, settings, tmp_path):
    """As cert-manager renews it: in the Secret that the chart names."""
    make_authority(tmp_path)
    cluster.kubectl("create", "namespace", "stasis")

    def put(name, how):
        make_certificate(tmp_path, name, "/CN=stasisd")
        secret = cluster.kubectl("-n", "stasis", "create", "secret", "tls", "served", f"--cert={tmp_path}/{name}.crt",
                                 f"--key={tmp_path}/{name}.key", "--dry-run=client", "-o", "yaml")
        cluster.kubectl(how, "-f", "-", stdin=secret)

    def has(machine, name):
        place = machine.path("/etc/stasis/tls")
        return all((place / f"tls.{kind}").read_bytes() == (tmp_path / f"{name}.{kind}").read_bytes()
                   for kind in ("crt", "key"))

    pods = lambda: cluster.kubectl("-n", "stasis", "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}")
    put("first", "create")
    helm("install", "stasis", CHART, "--wait", "--timeout=3m", *settings, "--set=api.enabled=true,api.tlsSecret=served")
    before = pods()
    assert all(has(machine, "first") for machine in nodes)
    put("second", "replace")
    # The kubelet looks at a pod's volumes once a minute, or when the pod changes.
    cluster.kubectl("-n", "stasis", "annotate", "pods", "--all", "look=now")
    until(lambda: all(has(machine, "second") for machine in nodes), 180, what="the renewed certificate", every=0.5)
    assert pods() == before
    assert put_back(cluster, helm) == ""
    assert not any(machine.path("/etc/stasis").exists() for machine in nodes)


def put_back(cluster, helm):
    try:
        helm("uninstall", "stasis", "--wait", "--timeout=3m")
    except AssertionError as failure:
        return str(failure)
    return ""


def test_an_uninstallation_that_a_node_misses_fails_and_is_made_good_by_the_next(cluster, nodes, helm, settings):
    before = [picture(machine) for machine in nodes]
    settings = [*settings, "--set=uninstall.timeoutSeconds=30"]
    helm("install", "stasis", CHART, "--create-namespace", "--wait", "--timeout=3m", *settings)
    there, missed = nodes
    missed.stop("kubelet")
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    try:
        # Nothing is scheduled to it any more; the Job would wait there for itself.
        until(lambda: cluster.kubectl("get", "node", missed.name, "-o", ready) != "True", 90, what="its loss", every=0.5)
        assert "job stasis-uninstall failed" in put_back(cluster, helm)
        assert picture(there) == before[0] and OURS in missed.path(TOLD).read_text()
        named = lambda kind: cluster.kubectl("-n", "stasis", "get", kind, "-o", "name").split()
        # Who may patch the DaemonSet is root on every node.
        assert "role.rbac.authorization.k8s.io/stasis-uninstall" not in named("roles")
        assert "job.batch/stasis-uninstall" in named("jobs")
    finally:
        missed.start_kubelet()
    until(lambda: OURS not in missed.path(TOLD).read_text(), 120, what="the node to be put back", every=0.5)
    # On a busy machine the pods need longer to be ready than the short time of this release's uninstallation.
    until(lambda: put_back(cluster, helm) == "", 300, what="the uninstallation", every=1)
    assert [picture(machine) for machine in nodes] == before


def write_manifests(folder, image):
    """The plain ones with an image put in, as their user does it, and for nodes without systemd."""
    for name in ("stasis", "uninstall"):
        text = (ROOT / "deploy" / f"{name}.yaml").read_text().replace("image: stasis/node:0.1.0", f"image: {image}")
        text = re.sub(r"^( *- )--root=/host$", r"\1--root=/host\n\1--offline", text, flags=re.MULTILINE)
        text = text.replace("path: /run/systemd\n", "path: /run\n").replace("- online\n", "- offline\n")
        (folder / f"{name}.yaml").write_text(text)


def test_plain_manifests_install_and_leave_the_nodes_as_they_were(cluster, nodes, image, tmp_path, request):
    """By the commands of docs/install.md."""
    before = [picture(machine) for machine in nodes]
    write_manifests(tmp_path, image)
    request.addfinalizer(lambda: cluster.kubectl("delete", "--ignore-not-found", "-f", tmp_path / "stasis.yaml"))
    cluster.kubectl("apply", "--filename", tmp_path / "stasis.yaml")
    cluster.kubectl("--namespace", "stasis", "rollout", "status", "daemonset/stasis", "--timeout=170s")
    for machine in nodes:
        assert OURS in machine.path(TOLD).read_text()
    cluster.kubectl("apply", "--filename", tmp_path / "uninstall.yaml")
    cluster.kubectl("--namespace", "stasis", "wait", "--for=condition=complete", "--timeout=170s", "job/stasis-uninstall")
    assert [picture(machine) for machine in nodes] == before
    cluster.kubectl("delete", "--filename", tmp_path / "stasis.yaml")


@pytest.mark.short
def test_the_api_server_takes_all_of_it(cluster, settings, request):
    cluster.kubectl("create", "namespace", "dry")
    request.addfinalizer(lambda: cluster.kubectl("delete", "namespace", "dry", "--now", "--wait=true"))
    for extra in [[], ["--set=api.enabled=true,api.tlsSecret=a,api.clientCaConfigMap=b,dashboard.enabled=true"]]:
        made = subprocess.run([HELM, "template", "stasis", CHART, "--namespace=dry", *settings, *extra], check=True,
                              capture_output=True, text=True).stdout
        taken = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=made)
        assert "daemonset.apps/stasis created (server dry run)" in taken
    plain = (ROOT / "deploy" / "stasis.yaml").read_text()
    cluster.kubectl("apply", "--dry-run=client", "--validate=strict", "-f", "-", stdin=plain)


def may(cluster, user, verb, resource, namespace):
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": user, "resourceAttributes": {"group": "stasis.dev", "resource": resource, "verb": verb,
                                             "namespace": namespace}}}
    answer = cluster.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(review))
    return json.loads(answer)["status"]["allowed"]


@pytest.mark.short
def test_a_role_bound_in_one_namespace_holds_there_alone(cluster, namespace, request):
    # Not the name of the release of other tests, whose roles are the whole cluster's, too.
    made = subprocess.run([HELM, "template", "roles-stasis", CHART, f"--namespace={namespace.name}",
                           "--show-only=templates/rbac.yaml"], check=True, capture_output=True, text=True).stdout
    namespace.kubectl("apply", "-f", "-", stdin=made)
    request.addfinalizer(lambda: namespace.kubectl("delete", "-f", "-", stdin=made))
    for user, role in (("ann", "checkpoints"), ("bob", "checkpoints-list")):
        namespace.kubectl("create", "rolebinding", user, f"--clusterrole=roles-stasis-{role}", f"--user={user}")
    assert all(may(cluster, "ann", verb, "checkpoints", namespace.name) for verb in ["create", "get", "list", "delete"])
    assert not may(cluster, "ann", "create", "checkpoints", "default")
    assert may(cluster, "bob", "list", "checkpoints", namespace.name)
    assert not may(cluster, "bob", "get", "checkpoints", namespace.name)
