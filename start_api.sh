#!/usr/bin/env bash
# Install what is needed, once, and start the server. HOST, PORT and MODEL_DIR are honoured; arguments are passed on.
set -euo pipefail
cd "$(dirname "$0")"

scripts/install espeak
exec .venv/bin/python -m streaming_server.cli serve "$@"
