"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streaming_server"
MODULES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {
    "domain": set[str](),
    "errors": set[str](),
    "text": set[str](),
    "segmentation": set[str](),
    "logs": set[str](),
    "environment": {"errors"},
    "settings": {"engines.registry", "environment"},
    "audio": {"audio", "domain", "errors"},
    "engines": {"engines", "environment", "audio", "domain", "errors", "text", "segmentation"},
    "speech": {"speech", "segmentation", "engines.base", "audio", "domain", "errors", "text"},
    "jobs": {"jobs", "speech", "audio", "domain", "errors", "text"},
    "ops": {"ops", "speech", "jobs", "engines.base", "errors", "domain"},
    "scale": {"scale", "jobs", "app", "settings", "errors", "logs", "speech.service", "engines.base"},
    "wyoming": {"wyoming", "api.http", "api.record", "api.requests", "speech", "ops", "engines.base", "audio", "domain"}
    | {"errors", "logs"},
    "api": {"api", "speech", "jobs", "ops", "domain", "errors", "audio", "settings", "environment", "text", "logs"}
    | {"segmentation"},
}
NEVER_IN_API = ("engines", "torch", "sqlalchemy")


def imports_of(module: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_follow_the_layout(module: Path) -> None:
    layer = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imports = imports_of(module)
    ours = {name.removeprefix("streaming_server.") for name in imports if name.startswith("streaming_server.")}
    if layer in ALLOWED:
        for name in ours - {"__version__"}:
            assert any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED[layer]), name
    if layer == "api":
        assert not [name for name in imports | ours if name.split(".")[0] in NEVER_IN_API]
    if layer == "audio":
        assert not [name for name in imports if name.split(".")[0] in {"asyncio", "anyio", "torch", "socket"}]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_has_a_docstring_and_a_size_one_can_read(module: Path) -> None:
    text = module.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 450


def test_the_app_loads_nothing_heavy() -> None:
    code = "import sys, streaming_server.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "streaming_server.api.native.routes" in loaded
    assert not {"torch", "celery", "ray", "transformers", "espeakng_loader", "onnxruntime", "hibari"} & set(loaded)
