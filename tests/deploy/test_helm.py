"""The chart, as far as it can be read without Helm: its values, its blocks, the configuration that it carries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "streaming-server"
TEMPLATES = sorted((CHART / "templates").iterdir())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
OPENS = ("if", "range", "with", "define")


def actions(template: Path) -> list[str]:
    return [found.strip() for found in re.findall(r"{{-?(.*?)-?}}", template.read_text(), re.DOTALL)]


def paths(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield above + name
        if isinstance(value, dict):
            yield from paths(value, f"{above}{name}.")


def used() -> set[str]:
    return {
        path for file in TEMPLATES for action in actions(file) for path in re.findall(r"\.Values\.([\w.]+)", action)
    }


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_block_is_closed(template: Path) -> None:
    depth = 0
    for action in actions(template):
        word = action.split()[0]
        depth += (word in OPENS) - (word == "end")
        assert depth >= 0, action
    assert depth == 0
    assert template.read_text().count("{{") == len(actions(template))


def test_every_value_that_is_used_has_a_default_and_every_default_is_used() -> None:
    known = set(paths(VALUES))
    assert used() <= known
    for path in known:
        assert any(name == path or name.startswith(path + ".") or path.startswith(name + ".") for name in used()), path


def test_every_helper_that_is_included_is_defined() -> None:
    defined, included = (
        {name for file in TEMPLATES for action in actions(file) for name in re.findall(rf'\b{word} "(.+?)"', action)}
        for word in ("define", "include")
    )
    assert included == defined


def test_the_chart_is_named_as_helm_wants_it() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["apiVersion"], chart["name"]) == ("v2", CHART.name)
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])


def test_the_gateway_has_the_configuration_that_is_tested() -> None:
    assert (CHART / "haproxy.cfg").resolve() == DEPLOY / "haproxy.cfg"
    assert '.Files.Get "haproxy.cfg"' in (CHART / "templates" / "gateway.yaml").read_text()


def test_kubernetes_starts_again_what_dies() -> None:
    """As it does unless a pod says otherwise; and a server that hangs is killed by its probe."""
    for template in TEMPLATES:
        assert set(re.findall(r"restartPolicy: *(\w+)", template.read_text())) <= {"Always"}, template.name
    assert "livenessProbe" in (CHART / "templates" / "server.yaml").read_text()
