#!/usr/bin/env bash
# Install all that the tests need and run them; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"

packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need opusinfo opus-tools
need ffmpeg ffmpeg
need chromium-headless-shell chromium-headless-shell
need firefox-esr firefox-esr
need pulseaudio pulseaudio
need WebKitWebDriver webkit2gtk-driver
need Xvfb xvfb
[ -e "$(echo /usr/lib/*/gstreamer-1.0/libgstpulseaudio.so)" ] || packages+=(gstreamer1.0-plugins-good)
need curl curl
need haproxy haproxy
need nginx nginx-light
need caddy caddy
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || packages+=(postgresql)
need docker-compose docker-compose
need systemd-analyze systemd
need redis-server redis-server
need npm npm
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || packages+=(rabbitmq-server)
ldconfig -p 2>/dev/null | grep -q 'libogg\.so' || packages+=(libogg0)
if [ ${#packages[@]} -gt 0 ]; then
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        as_root=(sudo)
        command="sudo apt-get install ${packages[*]}"
        if [ ! -t 0 ]; then
            echo "the tests need Debian packages; install them first: $command" >&2
            exit 1
        fi
        read -rp "the tests need Debian packages; run \"$command\"? [y/N] " answer
        [[ $answer == [yY]* ]] || exit 1
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
fi

scripts/install_all
# Kokoro's voices, for its tests; the packages of the registry for Python hold none of English.
[ -f .venv/kokoro-js-1.2.1.tgz ] || npm pack --silent --pack-destination .venv kokoro-js@1.2.1 >/dev/null
# pipecat asks for an older protobuf than other packages here have; its services for speech do not import it.
[ -d .venv/pipecat ] || .venv/bin/python -m pip install --quiet --no-compile --no-deps --target .venv/pipecat \
    pipecat-ai==1.14.0 loguru==0.7.3 loudness==0.2.0 num2words==0.5.14 sentencex==1.0.32 soxr==1.1.0 \
    wait_for2==0.4.1
# Otherwise every server that a test starts compiles what it imports.
unset PYTHONDONTWRITEBYTECODE
# Workers beside each other, each with whole modules, whose fixtures are made once; `-n 0` runs all in one process.
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@" </dev/null
