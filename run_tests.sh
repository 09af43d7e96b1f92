#!/usr/bin/env bash
# Install all that the tests need and run them; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"

packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need opusinfo opus-tools
need ffmpeg ffmpeg
need chromium chromium
need curl curl
need haproxy haproxy
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || packages+=(postgresql)
need docker-compose docker-compose
need systemd-analyze systemd
need redis-server redis-server
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || packages+=(rabbitmq-server)
ldconfig -p 2>/dev/null | grep -q 'libogg\.so' || packages+=(libogg0)
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        as_root=()
    elif sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
    else
        echo "the tests need Debian packages; install them first: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "${packages[@]}" >/dev/null
fi

scripts/install espeak indextts2 japanese higgs postgresql celery s3 ray test
exec .venv/bin/python -m pytest "$@"
