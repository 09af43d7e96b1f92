"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streaming_server"
MODULES = sorted(PACKAGE.rglob("*.py"))
BASE = {"domain", "errors", "text", "logs"}
ALLOWED = {
    **{name: set[str]() for name in BASE},
    "sandbox": set[str](),
    "segmentation": set[str](),
    "environment": {"errors"},
    "settings": {"engines.registry", "environment"},
    "audio": {"audio", "domain", "errors"},
    "engines": {"engines", "environment", "sandbox", "segmentation", "audio", "domain", "errors", "text"},
    "speech": {"speech", "segmentation", "engines.base", "audio", "domain", "errors", "text"},
    "jobs": {"jobs", "speech", "sandbox", "audio", "domain", "errors", "text"},
    "ops": {"ops", "speech", "jobs", "engines.base", "domain", "errors"},
    "api": {"api", "speech", "jobs", "ops", "audio", "settings", "environment", "segmentation"} | BASE,
    "mcp": {"mcp", "api", "jobs", "audio", "domain", "errors"},
    "wyoming": {"wyoming", "api.http", "api.record", "api.requests", "speech", "ops", "engines.base", "audio"} | BASE,
    "components": {"engines.base", "engines.registry", "speech", "jobs", "ops", "settings"},
    "scale": {"scale", "jobs", "components", "app", "settings", "environment", "errors", "logs"},
    "app": {
        "components",
        "api",
        "mcp",
        "wyoming",
        "environment",
        "engines.base",
        "speech",
        "jobs",
        "ops",
        "settings",
        "errors",
    },
    "startup": {"engines.base", "ops", "environment"},
    "joined_head": set[str](),
    "send_timeout": set[str](),
    "protocols": {"joined_head", "send_timeout"},
    "server": {"app", "protocols", "ops", "settings", "startup", "errors", "logs"},
    "downloads": {"errors"},
    "client": {"errors"},
}
"""What the modules of a layer may import; ``cli`` may import everything."""
NEVER_IN_API = ("engines", "torch", "sqlalchemy")


@cache
def imports_of(module: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def loaded_by(code: str) -> set[str]:
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_follow_the_layout(module: Path) -> None:
    layer = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imports = imports_of(module)
    ours = {name.removeprefix("streaming_server.") for name in imports if name.startswith("streaming_server.")}
    if layer not in {"cli", "__init__"}:
        for name in ours - {"__version__"}:
            assert any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED[layer]), name
    if layer == "api":
        assert not [name for name in imports | ours if name.split(".")[0] in NEVER_IN_API]
    if layer == "audio":
        assert not [name for name in imports if name.split(".")[0] in {"asyncio", "anyio", "torch", "socket"}]


def test_there_are_no_cycles() -> None:
    names = {
        ".".join(("streaming_server", *module.relative_to(PACKAGE).with_suffix("").parts)): module for module in MODULES
    }
    graph = {name: imports_of(module) & names.keys() - {name} for name, module in names.items()}
    TopologicalSorter(graph).prepare()


def test_a_worker_loads_no_routes() -> None:
    """It imports the messages of the workflow dialect, which other programs send, and nothing else of HTTP."""
    modules = "cli", "scale.celery_worker", "api.workflows.messages"
    imports = ", ".join(f"streaming_server.{module}" for module in modules)
    loaded = loaded_by(f"import sys, {imports}; print(*sys.modules)")
    assert "streaming_server.scale.celery_worker" in loaded
    assert not [name for name in loaded if name.startswith("streaming_server.") and name.endswith((".routes", ".app"))]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_has_a_docstring_and_a_size_one_can_read(module: Path) -> None:
    text = module.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 450


def test_the_app_loads_nothing_heavy() -> None:
    loaded = loaded_by("import sys, streaming_server.app; print(*sys.modules)")
    assert "streaming_server.api.native.routes" in loaded
    assert not {"torch", "celery", "ray", "transformers", "espeakng_loader", "onnxruntime", "hibari"} & loaded
