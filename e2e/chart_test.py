"""The chart, as Helm itself sees it: every value is documented and checked, and the plain manifests are its own."""

import filecmp
import json
import re
import subprocess

import pytest
import yaml

from e2e.paths import CACHE, ROOT

HELM = CACHE / "bin" / "helm"
CHART = ROOT / "charts" / "stasis"

pytestmark = pytest.mark.skipif(not HELM.exists(), reason="helm is not built: ./dev manifests builds it")


def helm(*arguments):
    return subprocess.run([HELM, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def render(*settings):
    made = helm("template", "stasis", CHART, "--namespace", "stasis", *[f"--set={each}" for each in settings])
    assert made.returncode == 0, made.stderr
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(made.stdout) if each}


def pod_of(objects):
    return objects["DaemonSet", "stasis"]["spec"]["template"]["spec"]


def test_lint_has_nothing_to_say():
    said = helm("lint", "--strict", CHART)
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("wrong", [
    "agent.logLevel=loud", "agent.shutdownGraceSeconds=60", "agent.namespaceSharePercent=0", "node.distribution=openshift", "node.runtimeEndpoint=/run/a",
    "node.checkIntervalSeconds=0", "api.port=70000", "image.digest=sha1:ab", "updateStrategy.maxUnavailable=0",
    "updateStrategy.maxUnavailable=200%", "serviceMonitor.interval=often", "no.such.value=1", "agent.typo=1",
    "api.enabled=true", "api.address=localhost",
])
def test_the_schema_refuses(wrong):
    made = helm("template", "stasis", CHART, f"--set={wrong}")
    assert made.returncode != 0
    assert "meet the specifications of the schema" in made.stderr


def test_metrics_without_the_api_are_refused():
    made = helm("template", "stasis", CHART, "--set=serviceMonitor.enabled=true")
    assert made.returncode != 0 and "needs api.enabled" in made.stderr


API = ["api.enabled=true", "api.tlsSecret=cert"]


def test_prometheus_knows_whom_it_gives_its_token_to():
    refused = helm("template", "stasis", CHART, f"--set={','.join(API)},serviceMonitor.enabled=true")
    assert refused.returncode != 0 and "needs serviceMonitor.caSecret" in refused.stderr
    monitor = render(*API, "serviceMonitor.enabled=true", "serviceMonitor.caSecret=cert",
                     "serviceMonitor.serverName=stasis")["ServiceMonitor", "stasis"]
    assert monitor["spec"]["endpoints"][0]["tlsConfig"] == {
        "ca": {"secret": {"name": "cert", "key": "ca.crt"}}, "serverName": "stasis"}


@pytest.mark.parametrize("address, listens", [("", ":10260"), ("[::1]", "[::1]:10260"), ("10.0.0.1", "10.0.0.1:10260")])
def test_the_api_listens_on_all_addresses_or_on_one(address, listens):
    made = render(*API, f"api.address={address}")
    assert f'api-listen = "{listens}"\n' in made["ConfigMap", "stasis"]["data"]["stasisd.toml"]


def test_every_value_says_what_it_is():
    lines = (CHART / "values.yaml").read_text().splitlines()
    # A comment stands above each value that is none of a group's later ones, which share it.
    silent = [line for before, line in zip(lines, lines[1:])
              if re.match(r" *[a-zA-Z]+: \S", line) and not before.strip()]
    assert silent in ([], ["imagePullSecrets: []"], ["affinity: {}", "podAnnotations: {}"])


def test_the_pod_has_no_right_that_it_does_not_need():
    pod = pod_of(render())
    assert not pod["hostNetwork"] and not pod["hostPID"] and not pod["automountServiceAccountToken"]
    security = pod["containers"][0]["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert not security["privileged"] and security["readOnlyRootFilesystem"]


def test_a_rollout_takes_one_node_at_a_time():
    spec = render()["DaemonSet", "stasis"]["spec"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    assert spec["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"][-1] == "--expect=installed"


def test_the_api_gets_a_token_and_may_ask_who_calls():
    objects = render("api.enabled=true", "api.tlsSecret=cert", "api.port=12345", "serviceMonitor.enabled=true",
                     "serviceMonitor.insecureSkipVerify=true", "dashboard.enabled=true")
    assert objects["ClusterRoleBinding", "stasis-auth-delegator"]["roleRef"]["name"] == "system:auth-delegator"
    assert objects["Service", "stasis"]["spec"]["ports"][0]["port"] == 12345
    assert "--credentials=/credentials" in pod_of(objects)["containers"][0]["args"]
    assert ("ServiceMonitor", "stasis") in objects
    board = json.loads(objects["ConfigMap", "stasis-dashboard"]["data"]["stasis.json"])
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])
    rule = objects["ClusterRole", "stasis-checkpoints"]["rules"]
    assert rule == [{"apiGroups": ["stasis.dev"], "resources": ["checkpoints"],
                     "verbs": ["create", "get", "list", "delete"]}]


def test_prometheus_can_read_what_the_dashboard_asks_and_agents_have_it(tmp_path):
    board = json.loads((CHART / "dashboards" / "stasis.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = [{"record": f"asked:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$node", ".*")}
             for number, expression in enumerate(asked)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    said = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True)
    assert said.returncode == 0 and f"{len(rules)} rules found" in said.stdout, said.stdout + said.stderr
    served = (ROOT / "docs" / "rest-api.md").read_text()  # which has them all, as a test of its own sees to
    assert set(re.findall(r"stasis_\w+", " ".join(asked))) - set(re.findall(r"`(stasis_\w+)", served)) == set()


def test_without_anything_to_tell_or_to_ask_there_is_no_token():
    objects = render("events.enabled=false", "nodeStatus.enabled=false")
    pod = pod_of(objects)
    assert [volume["name"] for volume in pod["volumes"]] == ["host", "systemd", "config"]
    assert not [name for kind, name in objects if name == "stasis-reports"]
    assert "no-events = true" in objects["ConfigMap", "stasis"]["data"]["stasisd.toml"]


def test_the_agents_options_reach_its_file():
    made = render("agent.preCopy=false", "agent.logLevel=debug", "agent.namespaceSharePercent=20",
                  "agent.extraConfig=a = 1\nb = 2")
    assert made["ConfigMap", "stasis"]["data"]["stasisd.toml"] == (
        'log-level = "debug"\nshutdown-grace = 30\nno-pre-copy = true\ncheckpoint-namespace-share = 20\na = 1\nb = 2\n')


def test_the_plain_manifests_are_the_charts(tmp_path):
    subprocess.run([ROOT / "deploy" / "manifests.sh", HELM, tmp_path], check=True)
    same, differ, missing = filecmp.cmpfiles(tmp_path, ROOT / "deploy", ["stasis.yaml", "uninstall.yaml"], shallow=False)
    assert not differ and not missing, "run ./dev manifests"
