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

# On Linux the server gets a session of its own: Ctrl+C in a terminal would otherwise reach it directly and once more from
# here, and uvicorn takes a second SIGINT as an order to abandon its streams. If this script is killed, the server must not
# keep the device: it is then told to end.
serve() {
    if command -v setsid >/dev/null; then set -- setsid "$@"; fi
    if setpriv --pdeathsig TERM true 2>/dev/null; then set -- setpriv --pdeathsig TERM "$@"; fi
    exec "$@"
}
pass_on() {
    is_interrupted=1
    kill -"$1" "$server" 2>/dev/null || true
}
serve .venv/bin/python -m streaming_server.cli serve "$@" &
server=$!
stopped=
trap 'pass_on TERM; stopped=1' TERM
# The first as SIGTERM: the server ignores SIGINT, as all background commands of a script do, until uvicorn handles it.
trap 'if [ -n "$stopped" ]; then pass_on INT; else pass_on TERM; fi; stopped=1' INT
trap 'pass_on HUP' HUP
# A signal that is passed on interrupts `wait`, which then returns the number of the signal.
is_interrupted=1
while [ -n "$is_interrupted" ]; do
    is_interrupted=
    status=0
    wait "$server" || status=$?
done
if [ -z "$stopped" ] && [ "$status" -gt 128 ]; then
    echo "start_api.sh: the server was ended by SIG$(kill -l "$status")" >&2
elif [ -z "$stopped" ] && [ "$status" -ne 0 ]; then
    echo "start_api.sh: the server ended with exit code $status" >&2
fi
exit "$status"
