#!/usr/bin/env bash
# One command from a checkout to a running installation: deploy/up.sh [gpu] [jobs|jobs-cpu] [ray]
# Makes the secrets that are missing, builds the images, starts everything and waits until it is healthy.
set -euo pipefail
cd "$(dirname "$0")"

profiles=()
for name in "$@"; do
    case $name in
    gpu | ray) profiles+=(--profile "$name") ;;
    jobs | jobs-cpu) profiles+=(--profile "$name") && export DATABASE_URL_FILE=/run/secrets/database_url ;;
    *) echo "up.sh: '$name' is not a profile; there are gpu, jobs, jobs-cpu and ray" >&2 && exit 2 ;;
    esac
done
command -v docker >/dev/null || { echo "up.sh: docker is not installed" >&2 && exit 2; }
docker compose version >/dev/null 2>&1 || { echo "up.sh: docker has no compose plugin (v2.24 or newer)" >&2 && exit 2; }

./secrets.sh
code=0
docker compose "${profiles[@]}" up --detach --build --wait --wait-timeout "${WAIT_SECONDS:-600}" || code=$?
if [ $code = 0 ]; then
    [ $# = 0 ] || echo "up.sh: for docker compose to mean the same from now on, deploy/.env wants" \
        "COMPOSE_PROFILES=$(IFS=, && echo "$*")${DATABASE_URL_FILE:+ and DATABASE_URL_FILE=$DATABASE_URL_FILE}" >&2
    exit
fi
case " $* " in
*" gpu "* | *" jobs "*) echo "up.sh: profiles gpu and jobs need an NVIDIA GPU and the NVIDIA Container Toolkit; jobs-cpu needs none" >&2 ;;
esac
echo "up.sh: not everything is up; docker compose -f deploy/compose.yaml ps --all shows what ended, logs SERVICE why" >&2
exit "$code"
