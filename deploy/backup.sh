#!/usr/bin/env bash
# Database, files, students, bundles and served versions of the running installation into a new folder: deploy/backup.sh FOLDER
# Everything goes on meanwhile. deploy/restore.sh brings them back.
set -euo pipefail
[ $# = 1 ] || { echo "usage: backup.sh FOLDER" >&2 && exit 2; }
[ ! -e "$1" ] || { echo "backup.sh: '$1' is there already; name a folder that is not" >&2 && exit 2; }
mkdir -p "$(dirname "$1")" && parent=$(cd "$(dirname "$1")" && pwd) && folder=$parent/$(basename "$1")
cd "$(dirname "$0")"
compose() { docker compose --profile '*' "$@"; }
running() { compose ps --services --status running | grep -qx "$1"; }
running api || { echo "backup.sh: the server (api) does not run; deploy/up.sh starts it" >&2 && exit 2; }

umask 077
new=$folder.new-$$
trap 'rm -rf "$new"' EXIT
mkdir "$new"
# The database first: what it names is in the archive then, which is written after it.
# shellcheck disable=SC2016 # the container's variables
where=$(compose exec -T api sh -c 'echo "${FEWSTEP_DATABASE_URL_FILE:-}${FEWSTEP_DATABASE_URL:-}"')
case $where in
/run/secrets/database_url)
    compose exec -T postgres pg_dump --format=custom --username=fewstep fewstep >"$new/jobs.dump"
    ;;
"")
    compose exec -T api python -c '
import sqlite3
source, copy = (sqlite3.connect(path, isolation_level=None) for path in ("/data/jobs.db", "/data/jobs.db.copy"))
source.backup(copy)
for each in (source, copy): each.close()'
    compose exec -T api sh -c 'cat /data/jobs.db.copy && rm /data/jobs.db.copy' >"$new/jobs.db"
    ;;
*) echo "backup.sh: jobs are in a database of your own, which is not in here; pg_dump it first" >&2 ;;
esac
# 1: a log grew while it was read.
compose exec -T api tar -C /data --exclude=./pictures --exclude=./cache --exclude='./jobs.db*' -cf - . >"$new/data.tar" || [ $? = 1 ]
(cd "$new" && sha256sum -- * >SHA256SUMS)
mv "$new" "$folder"
du -sh "$folder"/*
