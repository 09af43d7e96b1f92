"""The OpenAPI description is valid, complete, and agrees with the running server."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import annotated_types
import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute

from streaming_server.api.http import Body, ErrorShape, ErrorShapes
from streaming_server.api.middleware import ApiKeys
from streaming_server.api.native.routes import ERRORS
from streaming_server.api.openapi import document
from streaming_server.api.operations import Answer, ApiRoute, Operation, Tag
from streaming_server.app import create_app
from streaming_server.settings import Settings
from tests.support.fakes import FakeEngine, tone
from tests.support.server import RECORDINGS, LiveServer, eventually, running, speaking

DATA = TemporaryDirectory()
APP = create_app(Settings(reference_audio_dir=RECORDINGS, data_dir=Path(DATA.name)), engine=FakeEngine())


def needs_something(route: ApiRoute) -> bool:
    """Whether there is a field without which a request is refused."""
    return route.operation.takes is not None and any(
        field.is_required() for field in route.operation.takes.model_fields.values()
    )


ROUTES = [route for route in APP.routes if isinstance(route, ApiRoute)]
BODIES = sorted({route.operation.takes for route in ROUTES if route.operation.takes}, key=lambda body: body.__name__)
CALLS = sorted((route.path_format, method) for route in ROUTES for method in route.methods or () if method != "HEAD")
CAN_REFUSE = [
    (path, method)
    for path, method in CALLS
    if "{" in path
    or any(needs_something(route) for route in ROUTES if route.path_format == path and method in (route.methods or ()))
]
ENDLESS = {"/opus_queue_status/events", "/test_stream"}
"""Of these the beginning is enough."""
FILES = {
    f"{prefix}/{name}": field
    for prefix in ("/v1/audio", "/audio")
    for name, field in (("voices", "audio_sample"), ("voice_consents", "recording"))
}
"""Forms with a recording beside other fields, by path."""
BOUNDS = {
    annotated_types.Ge: ("minimum", "ge"),
    annotated_types.Gt: ("exclusiveMinimum", "gt"),
    annotated_types.Le: ("maximum", "le"),
    annotated_types.Lt: ("exclusiveMaximum", "lt"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.2))) as live:
        yield live


@pytest.fixture(scope="module")
def api(server: LiveServer) -> dict[str, Any]:
    described: dict[str, Any] = server.get("/openapi.json").json()
    return described


def known_names(server: LiveServer) -> dict[str, str]:
    """By path parameter, something that is there."""
    spoken = server.post("/synthesize_stream_opus", {"text": "a"})
    with (RECORDINGS / "voice_02.wav").open("rb") as recording:
        uploaded = server.client.post("/api/v1/upload/audio", files={"file": recording}).json()
    task = server.post("/api/v1/tts", {"text": "a", "prompt_audio_id": uploaded["file_id"]}).json()["task_id"]
    eventually(lambda: server.get(f"/api/v1/task/{task}").json()["status"] == "completed")
    chain = {"workflow_config": {"workflow_chain": ["indextts.health_check"]}}
    workflow = server.post("/v1/workflows?wait=false", chain).json()["workflow_id"]
    added = {}
    for path, field in (("/v1/audio/voices", "audio_sample"), ("/v1/audio/voice_consents", "recording")):
        form = {"name": uuid.uuid4().hex[:8], "consent": "in writing", "language": "en"}
        content = (RECORDINGS / "voice_02.wav").read_bytes()
        added[field] = server.client.post(path, data=form, files={field: content}).json()["id"]
    return {
        "voice_id": added["audio_sample"],
        "consent_id": added["recording"],
        "workflow_id": workflow,
        "stream_id": spoken.headers["x-stream-id"],
        "file_id": uploaded["file_id"],
        "task_id": task,
    }


def request_of(api: dict[str, Any], path: str, method: str, known: Mapping[str, str]) -> dict[str, Any]:
    """What the description's own examples make of an operation, as arguments of httpx."""
    operation = api["paths"][path][method.lower()]
    query = {}
    for parameter in operation.get("parameters", ()):
        example = parameter["schema"].get("examples", [known.get(parameter["name"], "gone")])[0]
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(example))
        elif parameter["required"]:
            query[parameter["name"]] = example
    arguments = {"method": method, "url": path, "params": query}
    for media_type, taken in operation.get("requestBody", {}).get("content", {}).items():
        if media_type == "multipart/form-data":
            recording = ("voice.wav", (RECORDINGS / "voice_01.wav").read_bytes())
            fields: dict[str, tuple[Any, Any]] = {name: (None, value) for name, value in taken["example"].items()}
            if files := FILES.get(path):
                fields |= {files: recording, "name": (None, uuid.uuid4().hex[:8])}
            arguments["files"] = fields or {"file": recording}
        else:
            arguments["json"] = taken["example"]
    return arguments


def check(api: dict[str, Any], path: str, method: str, response: httpx.Response) -> None:
    """That this is one of the answers that the description has."""
    answers = api["paths"][path][method.lower()]["responses"]
    assert str(response.status_code) in answers, response.text
    answer = answers[str(response.status_code)]
    assert {name.lower() for name in answer["headers"]} <= set(response.headers)
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if "content" not in answer:
        assert not response.content
        return
    kinds = answer["content"]
    content = kinds.get(media_type) or kinds.get(f"{media_type.partition('/')[0]}/*")
    assert content is not None or media_type in kinds, media_type
    if media_type == "application/json":
        validator = OAS31Validator({**kinds[media_type]["schema"], "components": api["components"]})
        for line in response.text.splitlines():  # some answers have one object a line
            validator.validate(json.loads(line))


def test_an_independent_reader_finds_it_valid(api: dict[str, Any]) -> None:
    validate(api)
    assert api["openapi"] == "3.1.0"


def test_every_route_is_in_it_and_nothing_more(api: dict[str, Any]) -> None:
    real = set()
    for route in APP.routes:
        if isinstance(route, Mount):
            assert route.path == "/static", "only the pages' own files need no description"
        elif isinstance(route, WebSocketRoute):
            # OpenAPI has no WebSockets: they are described in prose.
            assert route.path.removeprefix("/v1") in (Path(__file__).parents[2] / "docs/api.md").read_text()
        else:
            assert isinstance(route, Route)
            real |= {(route.path_format, method) for method in (route.methods or set()) - {"HEAD"}}
    assert {(path, method.upper()) for path, item in api["paths"].items() for method in item} == real


def test_texts_have_the_limits_of_the_settings() -> None:
    with running(FakeEngine(), max_text_characters=77) as live:
        schemas = live.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["SynthesizeBody"]["properties"]["text"]["maxLength"] == 77
    assert schemas["SpeechBody"]["properties"]["input"]["maxLength"] == 4096


def test_every_operation_belongs_to_a_dialect(api: dict[str, Any]) -> None:
    used = [tag for item in api["paths"].values() for operation in item.values() for tag in operation["tags"]]
    assert set(used) == {tag["name"] for tag in api["tags"]}
    assert len({tag["name"] for tag in api["tags"]}) == len(api["tags"])


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_fields_are_the_models(api: dict[str, Any], body: type[Body]) -> None:
    schema = api["components"]["schemas"][body.__name__]
    assert list(schema["properties"]) == list(body.model_fields)
    assert schema.get("required", []) == [name for name, field in body.model_fields.items() if field.is_required()]
    for name, field in body.model_fields.items():
        described = schema["properties"][name]
        assert "default" not in described if field.is_required() else described["default"] == field.default
        bounds = {BOUNDS[type(bound)]: bound for bound in field.metadata if type(bound) in BOUNDS}
        for (keyword, attribute), bound in bounds.items():
            assert described[keyword] == getattr(bound, attribute), name


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_ranges_are_what_the_model_accepts(api: dict[str, Any], body: type[Body]) -> None:
    properties = api["components"]["schemas"][body.__name__]["properties"]
    example = {name: schema["examples"][0] for name, schema in properties.items() if "examples" in schema}

    def accepts(name: str, value: object) -> bool:
        try:
            body.model_validate({**example, name: value})
        except ValidationError:
            return False
        return True

    for name, described in properties.items():
        for schema in described.get("anyOf", [described]):
            for value in schema.get("enum", ()):
                assert accepts(name, value)
            if "enum" in schema:
                assert not accepts(name, "no such choice")
            for keyword, outside, inside in (
                ("minimum", -1, 0),
                ("exclusiveMinimum", 0, 1),
                ("maximum", 1, 0),
                ("exclusiveMaximum", 0, -1),
            ):
                if (bound := schema.get(keyword)) is not None:
                    assert accepts(name, bound + inside), (name, keyword)
                    assert not accepts(name, bound + outside), (name, keyword)


@pytest.mark.parametrize(("path", "method"), CALLS)
def test_the_example_is_accepted_and_the_answer_is_as_described(
    server: LiveServer, api: dict[str, Any], path: str, method: str
) -> None:
    arguments = request_of(api, path, method, known_names(server))
    with server.client.stream(**arguments) as response:
        assert response.status_code < 300
        if path in ENDLESS:
            assert response.headers["content-type"].partition(";")[0] in str(api["paths"][path])
            return
        response.read()
    check(api, path, method, response)


@pytest.mark.parametrize(("path", "method"), CAN_REFUSE)
def test_refusals_are_as_described(server: LiveServer, api: dict[str, Any], path: str, method: str) -> None:
    url = re.sub(r"\{.+?\}", "no-such-thing", path)
    response = server.client.request(method, url, json={} if method == "POST" else None)
    assert 400 <= response.status_code < 500
    check(api, path, method, response)


def test_a_key_is_asked_for_where_the_description_says_so() -> None:
    with running(FakeEngine(), wait=False, api_keys=("secret",)) as live:
        api = live.get("/openapi.json").json()
        assert {} not in api["security"]
        for path, method in CALLS:
            response = live.client.request(**request_of(api, path, method, {}))
            is_open = api["paths"][path][method.lower()].get("security") == []
            assert (response.status_code != 401) == is_open == (path in ApiKeys.OPEN)
            if not is_open:
                check(api, path, method, response)


def test_without_keys_none_is_asked_for(api: dict[str, Any]) -> None:
    assert api["security"] == [{}, {"Bearer": []}, {"X-API-Key": []}, {"xi-api-key": []}]


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_head_says_the_same(server: LiveServer, path: str) -> None:
    got, head = server.get(path), server.client.head(path)
    assert head.status_code == 200
    assert head.headers["content-type"] == got.headers["content-type"]


def test_a_dialect_with_uploads_can_be_described() -> None:
    class UploadBody(Body):
        file: bytes
        """The recording."""

    class Refusal(Body):
        message: str

    async def upload(request: Request) -> Response:
        return Response(await request.body())

    operation = Operation("Take a file", [Answer("Taken.", dict[str, str])], UploadBody, "multipart/form-data")
    route = ApiRoute("/other/upload/{name:path}", upload, Tag("Other", "Another."), operation, methods=["POST"])
    refusing = ErrorShape(lambda status, message, error: {"message": message}, Refusal)
    shapes = ErrorShapes(ERRORS, {"/other": refusing})
    described = document([route], shapes, (), 100, keys_needed=True)
    taken = described["paths"]["/other/upload/{name}"]["post"]
    schema = taken["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema == {"$ref": "#/components/schemas/UploadBody"}
    assert described["components"]["schemas"]["UploadBody"]["properties"]["file"]["description"] == "The recording."
    assert set(taken["responses"]) == {"200", "400", "401", "413"}
    refusal = taken["responses"]["400"]["content"]["application/json"]["schema"]
    assert refusal == {"$ref": "#/components/schemas/Refusal"}
