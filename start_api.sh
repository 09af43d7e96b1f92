#!/usr/bin/env bash
# Install what is needed, once, and start the server. HOST, PORT and MODEL_DIR are honoured; arguments are passed on.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

# The package without any extra is enough to parse the arguments and to tell which extras they need.
scripts/install
case " $* " in *" -h "* | *" --help "*) exec .venv/bin/python -m streaming_server.cli serve --help ;; esac
extras=$(.venv/bin/python -m streaming_server.cli extras "$@")
# shellcheck disable=SC2086 # one word an extra
scripts/install $extras

# If this script is killed, the server must not keep the device: on Linux it is then told to end.
serve() {
    if setpriv --pdeathsig TERM true 2>/dev/null; then exec setpriv --pdeathsig TERM "$@"; fi
    exec "$@"
}
serve .venv/bin/python -m streaming_server.cli serve "$@" &
server=$!
stopped=
trap 'stopped=1; kill -TERM "$server" 2>/dev/null || true' TERM
trap 'stopped=1; kill -INT "$server" 2>/dev/null || true' INT
trap 'kill -HUP "$server" 2>/dev/null || true' HUP
# A signal that is passed on interrupts `wait` before the server has ended.
status=0
wait "$server" || status=$?
while kill -0 "$server" 2>/dev/null; do
    status=0
    wait "$server" || status=$?
done
if [ -z "$stopped" ] && [ "$status" -gt 128 ]; then
    echo "start_api.sh: the server was ended by SIG$(kill -l "$status")" >&2
elif [ -z "$stopped" ] && [ "$status" -ne 0 ]; then
    echo "start_api.sh: the server ended with exit code $status" >&2
fi
exit "$status"
