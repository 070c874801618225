#!/bin/sh
# Makes the database on the first start, from POSTGRES_USER, POSTGRES_DB and POSTGRES_PASSWORD_FILE; then runs the server.
set -eu
: "${POSTGRES_USER:?is not set}" "${POSTGRES_DB:?is not set}" "${POSTGRES_PASSWORD_FILE:?is not set}"
data=$PGDATA/cluster
if [ ! -s "$data/PG_VERSION" ]; then
    rm -rf "$data.new"
    initdb --pgdata "$data.new" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" \
        --auth-local trust --auth-host scram-sha-256 --encoding UTF8 >/dev/null
    echo "host all all all scram-sha-256" >>"$data.new/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$data.new" postgres >/dev/null
    mv "$data.new" "$data"
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
