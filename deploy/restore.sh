#!/usr/bin/env bash
# What deploy/backup.sh wrote, into the installation that is here: deploy/restore.sh FOLDER
# Stops the servers and workers, puts database and files back in place of those that are there, starts them again.
# Jobs that ran when the backup was made go on from their last state once their lease has run out.
set -euo pipefail
[ $# = 1 ] || { echo "usage: restore.sh FOLDER" >&2 && exit 2; }
[ -s "$1/data.tar" ] || { echo "restore.sh: '$1' holds no backup: no data.tar in it" >&2 && exit 2; }
folder=$(cd "$1" && pwd)
(cd "$folder" && sha256sum --quiet --check SHA256SUMS) || { echo "restore.sh: '$1' is not as it was written" >&2 && exit 1; }
cd "$(dirname "$0")"
compose() { docker compose --profile '*' "$@"; }
in_data() { compose run --rm --no-deps -T --entrypoint sh api -c "$1"; }

others=$(compose ps --services --status running | grep -E '^(api|worker|ray)' || true)
# shellcheck disable=SC2086 # words
[ -z "$others" ] || compose stop $others
if [ -e "$folder/jobs.dump" ]; then
    compose up --detach --wait postgres
    # In one transaction, and in place of all that is there: tables of a later version would stop the next upgrade.
    sql=$(mktemp)
    trap 'rm -f "$sql"' EXIT
    compose exec -T postgres pg_restore --no-owner --file=- <"$folder/jobs.dump" >"$sql"
    compose exec -T postgres psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --single-transaction --username=fewstep --dbname=fewstep \
        --command='DROP SCHEMA public CASCADE' --command='CREATE SCHEMA public' --file=- <"$sql" >/dev/null
elif [ -e "$folder/jobs.db" ]; then
    in_data 'cat >/data/jobs.db.new && rm -f /data/jobs.db-wal /data/jobs.db-shm && mv /data/jobs.db.new /data/jobs.db' <"$folder/jobs.db"
fi
in_data 'tar -C /data -xf -' <"$folder/data.tar"
# shellcheck disable=SC2086
compose up --detach --no-deps --wait ${others:-api}
