"""Another program: it knows the names of the tasks, what they take, and where the broker is.

Usage: python -m tests.support.pipeline BROKER < chains; each line is a list of [name, arguments]. Prints one line each.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from celery import Celery, chain

PATIENCE_S = 300


def outcome(app: Celery, members: list[tuple[str, list[Any]]]) -> dict[str, Any]:
    result = chain(*(app.signature(name, args=arguments) for name, arguments in members)).apply_async()
    try:
        return {"result": result.get(timeout=PATIENCE_S)}
    except Exception as error:
        return {"raised": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    url = sys.argv[1]
    program = Celery("pipeline", broker=url, backend=url if url.startswith("redis") else "rpc://")
    for line in sys.stdin:
        print(json.dumps(outcome(program, json.loads(line))), flush=True)
