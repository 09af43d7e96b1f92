#!/usr/bin/env bash
# Install what is needed, once, and start the server. HOST, PORT and MODEL_DIR are honoured; arguments are passed on.
set -euo pipefail
cd "$(dirname "$0")"

# The package without any extra is enough to parse the arguments and to tell which extras they need.
scripts/install
case " $* " in *" -h "* | *" --help "*) exec .venv/bin/python -m streaming_server.cli serve --help ;; esac
extras=$(.venv/bin/python -m streaming_server.cli extras "$@")
# shellcheck disable=SC2086 # one word an extra
scripts/install $extras
exec .venv/bin/python -m streaming_server.cli serve "$@"
