#!/usr/bin/env bash
# Install what is needed, once, and start the server. HOST, PORT and MODEL_DIR are honoured; arguments are passed on.
set -euo pipefail
cd "$(dirname "$0")"

# Which engine is meant decides what is installed; the server itself reads the same arguments once more.
engine=${ENGINE:-auto} model_dir=${MODEL_DIR:-checkpoints} model_path=${MODEL_PATH:-} option=
for argument in "$@"; do
    case $argument in
        --*=*) option=${argument%%=*} value=${argument#*=} ;;
        --*) option=$argument; continue ;;
        *) value=$argument ;;
    esac
    case $option in
        --engine) engine=$value ;;
        --model_dir | --model-dir) model_dir=$value ;;
        --model-path) model_path=$value ;;
    esac
done

extras=(espeak)
if [ "$engine" = indextts ] || { [ "$engine" = auto ] && [ -f "$model_dir/config.yaml" ]; }; then
    extras=(indextts)
    if grep -qE "^version: *['\"]?2" "$model_dir/config.yaml" 2>/dev/null; then
        extras=(indextts2)
    fi
elif [ "$engine" = higgs ] || { [ "$engine" = auto ] && [ -f "${model_path:-none}/config.json" ]; }; then
    extras=(higgs)
fi
[ -z "${CELERY_BROKER_URL:-}" ] || extras+=(celery)
case ${DATABASE_URL:-} in postgres*) extras+=(postgresql) ;; esac
case ${FILES_URL:-} in s3:*) extras+=(s3) ;; esac
scripts/install "${extras[@]}"
exec .venv/bin/python -m streaming_server.cli serve "$@"
