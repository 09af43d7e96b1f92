"""The rendered Helm chart: references resolve, and probes and variables exist in the server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from streaming_server import __version__
from streaming_server.engines import registry
from streaming_server.settings import Settings
from tests.support.fakes import FakeEngine
from tests.support.helm import Chart, ChartError
from tests.support.server import running

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = Chart(DEPLOY / "helm" / "streaming-server")
SETTINGS = set(Settings.variables()) | set(registry.variables())
ALL = {
    "worker": {"replicas": 2},
    "ingress": {"enabled": True, "tlsSecret": "certificate"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "existingSecret": "keys",
    "dataClaim": "data",
    "modelClaim": "model",
    "server": {"env": {"MAX_QUEUE": 8, "ENGINE": "indextts2"}},
}
Manifest = dict[str, Any]


@pytest.fixture(scope="module", params=[{}, ALL], ids=["defaults", "everything"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return CHART.render("demo", **request.param)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """The template of each pod, with its workload."""
    for manifest in manifests:
        if template := manifest["spec"].get("template") if "spec" in manifest else None:
            yield manifest, template


def is_selected(labels: Manifest, selector: Manifest) -> bool:
    return selector.items() <= labels.items()


def test_every_kind_is_there() -> None:
    kinds = sorted(manifest["kind"] for manifest in CHART.render("demo", **ALL))
    always = ["ConfigMap", "Deployment", "PodDisruptionBudget", "Service", "Service", "StatefulSet"]
    more = ["Deployment", "HorizontalPodAutoscaler", "Ingress", "PodMonitor", "ServiceMonitor"]
    assert kinds == sorted([*always, *more])
    assert sorted(manifest["kind"] for manifest in CHART.render("demo")) == always


def test_every_selector_selects_pods_or_services_of_the_chart(manifests: list[Manifest]) -> None:
    labelled = [template["metadata"]["labels"] for _, template in pods(manifests)]
    for manifest, template in pods(manifests):
        assert is_selected(template["metadata"]["labels"], manifest["spec"]["selector"]["matchLabels"])
    for service in of_kind(manifests, "Service"):
        assert sum(is_selected(labels, service["spec"]["selector"]) for labels in labelled) == 1
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        assert sum(is_selected(labels, budget["spec"]["selector"]["matchLabels"]) for labels in labelled) == 1
    for monitor in of_kind(manifests, "ServiceMonitor"):
        services = [service["metadata"]["labels"] for service in of_kind(manifests, "Service")]
        assert sum(is_selected(labels, monitor["spec"]["selector"]["matchLabels"]) for labels in services) == 1
    for monitor in of_kind(manifests, "PodMonitor"):
        [gateway] = [
            template["spec"]["containers"][0]
            for _, template in pods(manifests)
            if is_selected(template["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"])
        ]
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        [port] = [port["containerPort"] for port in gateway["ports"] if port["name"] == endpoint["port"]]
        assert {"name": "STATS", "value": f":{port}"} in gateway["env"]


def test_every_name_that_is_referred_to_exists(manifests: list[Manifest]) -> None:
    named = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    assert len(named) == len(manifests)
    [servers] = of_kind(manifests, "StatefulSet")
    assert ("Service", servers["spec"]["serviceName"]) in named
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in named
        assert "replicas" not in servers["spec"]  # which the autoscaler sets
    for ingress in of_kind(manifests, "Ingress"):
        [rule] = ingress["spec"]["rules"]
        [path] = rule["http"]["paths"]
        backend = path["backend"]["service"]
        [service] = [s for s in of_kind(manifests, "Service") if s["metadata"]["name"] == backend["name"]]
        assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    for _, template in pods(manifests):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert template["spec"].get("restartPolicy", "Always") == "Always"


def test_the_servers_have_probes_that_they_answer_and_variables_that_they_read(manifests: list[Manifest]) -> None:
    [servers] = of_kind(manifests, "StatefulSet")
    [container] = servers["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    probed = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probed.values()} <= ports
    with running(FakeEngine()) as live:
        assert {live.get(probe["path"]).status_code for probe in probed.values()} == {200}
        metrics = {
            sample.name for f in text_string_to_metric_families(live.get("/metrics").text) for sample in f.samples
        }
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        [metric] = scaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] in metrics
        # The gateway gives a server no more requests than its slot accepts, so a higher target adds no server.
        thousandths = re.fullmatch(r"(\d+)m", metric["pods"]["target"]["averageValue"])
        assert thousandths is not None
        assert int(thousandths[1]) < 1000 * Settings().max_concurrent
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert set(variables) <= SETTINGS
    assert all(isinstance(value, str) for value in variables.values())
    count = CHART.values["server"]["replicas"]
    if scalers := of_kind(manifests, "HorizontalPodAutoscaler"):
        count = scalers[0]["spec"]["maxReplicas"]
    fleet = variables["FLEET"].split(",")
    assert fleet == [f"http://demo-{number}.demo-servers:8000" for number in range(count)]


@pytest.mark.parametrize(
    "several", [{"server": {"replicas": 2}}, {"autoscaling": {"enabled": True}}, {"worker": {"replicas": 1}}]
)
def test_several_processes_that_share_nothing_are_rejected(several: Manifest) -> None:
    def sharing(**env: str) -> Manifest:
        return several | {"server": several.get("server", {}) | {"env": env}}

    database, files = "server.env.DATABASE_URL", "server.env.FILES_URL"
    for values, missing in (
        (several, files),
        ({**several, "existingSecret": "a"}, files),
        (sharing(DATABASE_URL="a"), files),
        ({**several, "dataClaim": "a"}, database),
        (sharing(FILES_URL="a"), database),
    ):
        with pytest.raises(ChartError, match=missing):
            CHART.render("demo", **values)
    for values in (sharing(DATABASE_URL="a", FILES_URL="b"), {**several, "existingSecret": "a", "dataClaim": "b"}):
        assert of_kind(CHART.render("demo", **values), "StatefulSet")


def test_workers_have_the_settings_of_the_servers() -> None:
    [worker] = [m for m in CHART.render("demo", **ALL) if m["metadata"]["name"] == "demo-worker"]
    [container] = worker["spec"]["template"]["spec"]["containers"]
    assert {variable["name"]: variable["value"] for variable in container["env"]} == {
        "MAX_QUEUE": "8",
        "ENGINE": "indextts2",
    }


def test_a_long_name_is_cut_to_what_kubernetes_takes() -> None:
    for manifest in CHART.render("a-name-that-is-much-longer-than-it-should-be-for-a-release"):
        assert len(manifest["metadata"]["name"]) <= 63
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])


def test_the_gateway_has_the_configuration_that_is_tested() -> None:
    [configuration] = of_kind(CHART.render("demo"), "ConfigMap")
    expected = (DEPLOY / "haproxy.cfg").read_text().splitlines()
    assert [line.rstrip() for line in configuration["data"]["haproxy.cfg"].strip().splitlines()] == expected


def test_the_chart_and_its_image_have_the_version_of_the_server() -> None:
    chart = yaml.safe_load((DEPLOY / "helm" / "streaming-server" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert CHART.values["image"]["tag"] == f"{__version__}-cuda"
    assert __version__ in (DEPLOY / "compose.yaml").read_text()
    commands = re.findall(r"docker build .*", (DEPLOY.parent / "docs" / "scaling.md").read_text())
    commands += re.findall(r"docker build .*", (DEPLOY / "Dockerfile").read_text())
    for command in commands:
        target = re.search(r"--target (\w+) ", command)
        assert target is not None
        assert f"streaming-server:{__version__}-{target[1]} " in command
    assert len(commands) >= 3
