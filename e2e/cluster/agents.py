"""The agents of a cluster as the chart sets them up: with their REST API, and telling what they do."""

import os
import subprocess
import tempfile
from pathlib import Path

import yaml

from e2e.paths import BIN, ROOT
from e2e.testbed.images import Image, Link

TOKEN = "/var/lib/stasis/token"


def push_image(cluster):
    """What the Dockerfile makes, in the cluster's registry: of this machine's own programs, or the archive that
    $STASIS_NODE_IMAGE is, of `./dev image`."""
    if archive := os.environ.get("STASIS_NODE_IMAGE"):
        reference = f"{cluster.control_plane.registry.address}/stasis-node:built"
        with tempfile.TemporaryDirectory() as folder:
            buildah = ["buildah", "--storage-driver=vfs", f"--root={folder}/storage", f"--runroot={folder}/run"]
            pulled = subprocess.run([*buildah, "pull", "--quiet", f"docker-archive:{archive}"], check=True,
                                    capture_output=True, text=True)
            subprocess.run([*buildah, "push", "--quiet", "--tls-verify=false", pulled.stdout.strip(),
                            f"docker://{reference}"], check=True, capture_output=True)
        return reference
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([ROOT / "deploy" / "bundle.sh", BIN, folder], check=True, capture_output=True, text=True)
        release = Path(made.stdout.strip())
        files = {f"opt/stasis/releases/{release.name}/{path.relative_to(release)}": path
                 for path in sorted(release.rglob("*")) if path.is_file()}
        files |= {"opt/stasis/current": Link(f"releases/{release.name}"),
                  "usr/local/bin/uninstall-nodes": ROOT / "deploy" / "image" / "uninstall-nodes"}
        parts = Image(["/opt/stasis/current/bin/stasis-node"], programs=["/usr/bin/curl"], files=files)
        return cluster.control_plane.registry.push(parts, "stasis-node", "dev")


def rights():
    """Of the plain manifests: accounts, roles and policies, and the namespace that they are in."""
    kinds = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy",
             "ValidatingAdmissionPolicyBinding")
    found = yaml.safe_load_all((ROOT / "deploy" / "stasis.yaml").read_text())
    return [of_helm(each) for each in found if each and each["kind"] in kinds]


def of_helm(one):
    """The same object, which a release "stasis" of the chart takes over where it finds it."""
    metadata = one["metadata"]
    metadata.setdefault("labels", {})["app.kubernetes.io/managed-by"] = "Helm"
    metadata.setdefault("annotations", {}).update({
        "meta.helm.sh/release-name": "stasis", "meta.helm.sh/release-namespace": "stasis"})
    return one


def serve_api(cluster):
    """Starts every agent anew, known to the cluster. Checkpoints may be pushed to the cluster's registry."""
    delegator = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"}
    account = {"kind": "ServiceAccount", "name": "stasis", "namespace": "stasis"}
    cluster.kubectl.apply(*rights(), of_helm({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "stasis-auth-delegator"}, "roleRef": delegator, "subjects": [account]}))
    secrets, registry = cluster.authority.folder, cluster.control_plane.registry.address
    for name, node in cluster.nodes.items():
        # Bound to the node as a pod's token is, without a pod: the cluster's nodes have no systemd to install into.
        token = cluster.kubectl("-n", "stasis", "create", "token", "stasis", "--bound-object-kind=Node",
                                f"--bound-object-name={name}", "--duration=24h")
        node.path(TOKEN).write_text(token)
        node.stasisd_options = [
            "--api-listen", f"{node.address}:10260", "--api-tls-cert", secrets / f"{name}-server.crt",
            "--api-tls-key", secrets / f"{name}-server.key", "--api-client-ca", cluster.authority.certificate,
            "--api-server", cluster.control_plane.server, "--api-server-ca", cluster.authority.certificate,
            "--api-server-token-file", TOKEN, "--node-name", name,
            "--push-to", f"http://{registry}/checkpoints/{{namespace}}/"]
        node.stop("stasisd")
        node.start_stasisd()


def leave(cluster):
    """Undoes it."""
    for node in cluster.nodes.values():
        node.stasisd_options = []
        node.stop("stasisd")
        node.start_stasisd()
    names = [f"{each['kind']}/{each['metadata']['name']}" for each in rights() if each["kind"] != "ServiceAccount"]
    cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "clusterrolebinding/stasis-auth-delegator", *names)
