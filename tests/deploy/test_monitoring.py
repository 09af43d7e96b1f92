"""The dashboard and the alert rules against the metrics of a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fakes import FOREVER, tone
from tests.support.server import LiveServer, RawClient, by_text, eventually, running

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
EXPRESSIONS = {
    **{panel["title"]: target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]},
    **{rule["alert"]: rule["expr"] for rule in RULES},
}
ADDED_BY_PROMETHEUS = {"instance", "job"}
SELECTOR = re.compile(r"\b([a-z]+(?:_[a-z]+)+|up)\b(?:\{([^}]*)\})?(?!\s*\()")
FUNCTIONS = {"histogram_quantile", "label_values"}


@pytest.fixture(scope="module")
def exported() -> Iterator[dict[str, set[str]]]:
    """The labels of every sample, by name, of a server that one client has heard and another one left."""
    with running(by_text({"whole": [tone(0.1)], "left": [tone(0.1), FOREVER]})) as live:
        live.post("/synthesize", {"text": "whole"}).raise_for_status()
        RawClient(live.port, "/synthesize_stream", {"text": "left"}).close()
        eventually(lambda: "speech_disconnects_total" in samples(live))
        yield {"up": set()} | samples(live)


def samples(live: LiveServer) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(live.get("/metrics").text):
        found.setdefault(family.name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression_reads_metrics_and_labels_that_exist(name: str, exported: dict[str, set[str]]) -> None:
    expression = EXPRESSIONS[name]
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", labels)}
    selected = [
        (metric, re.findall(r"(\w+)\s*!?=", matchers))
        for metric, matchers in SELECTOR.findall(re.sub(r"by \([^)]*\)", "", expression))
        if metric not in FUNCTIONS
    ]
    assert selected
    known = ADDED_BY_PROMETHEUS.copy()
    for metric, labels in selected:
        assert metric in exported, metric
        assert set(labels) <= exported[metric] | ADDED_BY_PROMETHEUS, metric
        known |= exported[metric]
    assert grouped <= known


def test_every_legend_shows_labels_that_its_expression_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert label in target["expr"] or not re.search(r"\b(sum|max)\b", target["expr"]), panel["title"]


def test_the_dashboard_has_one_place_for_every_panel() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at: dict[str, Any] = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}
