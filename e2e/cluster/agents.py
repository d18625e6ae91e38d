"""The agents of a cluster as the chart sets them up: with their REST API, and telling what they do."""

import yaml

from e2e.paths import ROOT

TOKEN = "/var/lib/stasis/token"


def rights():
    """Of the plain manifests: accounts, roles and policies, and the namespace that they are in."""
    kinds = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy",
             "ValidatingAdmissionPolicyBinding")
    found = yaml.safe_load_all((ROOT / "deploy" / "stasis.yaml").read_text())
    return [each for each in found if each and each["kind"] in kinds]


def serve_api(cluster):
    """Starts every agent anew, known to the cluster. Checkpoints may be pushed to the cluster's registry."""
    delegator = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"}
    account = {"kind": "ServiceAccount", "name": "stasis", "namespace": "stasis"}
    cluster.kubectl.apply(*rights(), {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "stasis-auth-delegator"}, "roleRef": delegator, "subjects": [account]})
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
