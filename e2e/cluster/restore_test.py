"""Pods that name a checkpoint image."""

import re
from datetime import datetime, timedelta

import pytest

from e2e.cluster.workload import SPREAD, Refused, controller
from e2e.wait import until


@pytest.mark.parametrize("node", ["node1", pytest.param("node2", marks=pytest.mark.short)])
def test_a_pod_goes_on_from_a_checkpoint_image(namespace, node):
    namespace.run("one")
    before = [namespace.count("one") for _ in range(5)][-1]
    image = namespace.checkpoint_image("one")
    namespace.remove("pod", "one")
    namespace.run("two", node, image)
    after = namespace.count("two")
    assert (after["count"], after["born"]) == (before["count"] + 1, before["born"])
    status = namespace.status("two")
    assert status["image"] == image and status["restartCount"] == 0
    assert f"counter {before['born']} begins" in namespace.kubectl("logs", "two")
    assert namespace.kubectl("exec", "two", "--", "hostname").strip() == "two"


@pytest.mark.short
def test_volumes_are_those_of_the_new_pod(namespace):
    def volumes(kind):
        return {"volumes": [{"name": "settings", "configMap": {"name": kind}},
                            {"name": "secret", "secret": {"secretName": kind}},
                            {"name": "scratch", "emptyDir": {}}],
                "container": {"volumeMounts": [{"name": name, "mountPath": f"/{name}"}
                                               for name in ("settings", "secret", "scratch")]}}

    for kind in ("old", "new"):
        namespace.kubectl("create", "configmap", kind, f"--from-literal=key={kind} settings")
        namespace.kubectl("create", "secret", "generic", kind, f"--from-literal=key={kind} secret")
    namespace.run("one", **volumes("old"))
    namespace.ask("one", "/write?/scratch/file")
    old_token = namespace.ask("one", "/read?/var/run/secrets/kubernetes.io/serviceaccount/token")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, **volumes("new"))
    assert namespace.ask("two", "/read?/settings/key") == "new settings"
    assert namespace.ask("two", "/read?/secret/key") == "new secret"
    with pytest.raises(Refused, match="No such file"):
        namespace.ask("two", "/read?/scratch/file")
    assert namespace.ask("two", "/write?/scratch/file") != ""
    token = namespace.ask("two", "/read?/var/run/secrets/kubernetes.io/serviceaccount/token")
    assert token.count(".") == 2 and token != old_token


def test_a_file_that_is_open_on_an_empty_dir_is_refused_when_it_is_not_there(namespace):
    volume = {"volumes": [{"name": "scratch", "emptyDir": {}}],
              "container": {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}}
    namespace.run("one", **volume)
    namespace.ask("one", "/write?/scratch/file")
    namespace.ask("one", "/hold?/scratch/file")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, wait=False, **volume)
    until(lambda: "open /scratch/file: No such file" in namespace.kubectl("describe", "pod", "two"),
          what="the refusal", every=0.2)


def settings(name):
    return {"volumes": [{"name": "settings", "configMap": {"name": name}}],
            "container": {"volumeMounts": [{"name": "settings", "mountPath": "/settings"}]}}


def test_a_file_of_a_config_map_that_is_open_mapped_or_watched_is_the_new_pods(namespace):
    """It lies in a folder that the kubelet names by the time."""
    for name in ("old", "new"):
        namespace.kubectl("create", "configmap", name, f"--from-literal=key={name} settings")
    namespace.run("one", **settings("old"))
    namespace.ask("one", "/hold?/settings/key")
    namespace.ask("one", "/map?/settings/key")
    assert namespace.ask("one", "/watch?/settings/key") == "1"
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert namespace.ask("one", f"/watch?{token}") == "1"
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, **settings("new"))
    assert namespace.ask("two", "/held") == namespace.ask("two", "/mapped") == "new settings"
    assert namespace.ask("one", "/held") == "old settings"


def test_a_restore_that_is_refused_ends_at_once_and_says_why(namespace):
    namespace.kubectl("create", "configmap", "old", "--from-literal=key=the old settings")
    namespace.kubectl("create", "configmap", "new", "--from-literal=key=shorter")
    namespace.run("one", **settings("old"))
    namespace.ask("one", "/hold?/settings/key")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, wait=False, **settings("new"))

    def ended():
        statuses = namespace.get("pod", "two")["status"].get("containerStatuses", [{}])
        states = [statuses[0].get(when, {}).get("terminated") for when in ("state", "lastState")]
        return next(filter(None, states), None)

    state = until(ended, what="the refusal", every=0.1)
    assert state["reason"] == "RestoreFailed"
    assert re.search(r"pid 1 fd \d+: .*/settings/\.\.data/key had 16 bytes .* has 7 here", state["message"])
    # A container that could not be killed would be waited for for half a minute.
    times = [datetime.fromisoformat(state[key]) for key in ("startedAt", "finishedAt")]
    assert times[1] - times[0] < timedelta(seconds=15)
    assert "not restored" in namespace.kubectl("logs", "two", "--previous")


def test_probes_hold_and_are_answered(namespace):
    get = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    probes = {"container": {"startupProbe": {**get, "failureThreshold": 20}, "readinessProbe": get,
                            "livenessProbe": get}}
    namespace.run("one", **probes)
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, **probes)
    for pod in ("one", "two"):
        assert namespace.status(pod)["ready"] and namespace.status(pod)["restartCount"] == 0


def test_init_containers_and_sidecars_run_as_ever(namespace):
    busybox = namespace.cluster.image("busybox")
    spec = {"volumes": [{"name": "shared", "emptyDir": {}}],
            "container": {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}}
    mount = spec["container"]
    spec["initContainers"] = [
        {"name": "first", "image": busybox, "command": ["sh", "-c", "hostname >/shared/first"], **mount},
        {"name": "sidecar", "image": busybox, "restartPolicy": "Always",
         "command": ["sh", "-c", "hostname >/shared/sidecar; sleep 1000"], **mount}]
    namespace.run("one", **spec)
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, **spec)
    assert namespace.count("two")["born"] == before["born"]
    assert namespace.ask("two", "/read?/shared/first") == "two\n"
    assert until(lambda: namespace.ask("two", "/read?/shared/sidecar")) == "two\n"


@pytest.mark.short
def test_each_pod_of_a_deployment_goes_on_from_the_image(namespace):
    namespace.run("one")
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    namespace.apply(controller("Deployment", image, SPREAD, replicas=3))
    namespace.wait_rolled_out("deployment/set")
    pods = [pod for pod in namespace.list("pods") if "app" in pod["metadata"].get("labels", {})]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node1", "node2"}
    for pod in pods:
        after = namespace.count(pod["metadata"]["name"])
        assert (after["count"], after["born"]) == (before["count"] + 1, before["born"])


def test_a_pod_of_a_stateful_set_keeps_its_name_and_is_restored_when_replaced(namespace):
    namespace.run("one")
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    namespace.apply(controller("StatefulSet", image, replicas=2, serviceName="set"))
    namespace.wait_rolled_out("statefulset/set")
    assert namespace.count("set-1")["count"] == namespace.count("set-0")["count"] == before["count"] + 1
    uid = namespace.get("pod", "set-0")["metadata"]["uid"]
    namespace.remove("pod", "set-0")
    until(lambda: any(pod["metadata"]["name"] == "set-0" and pod["metadata"]["uid"] != uid
                      for pod in namespace.list("pods")), what="the replacement", every=0.1)
    namespace.wait_ready("set-0")
    assert namespace.count("set-0") == {"count": before["count"] + 1, "born": before["born"]}
