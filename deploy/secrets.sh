#!/usr/bin/env bash
# Makes the secrets that are missing, at random, as files; those that are there stay as they are.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
# The folder keeps other people out; the files have to be readable for the users inside the containers.
chmod 0700 "$folder"

# Letters, digits, dots and underscores: neither a URL nor a command line takes them for anything else.
random() { head -c 24 /dev/urandom | base64 | tr '+/' '._'; }
keep() { # NAME VALUE
    [ -s "$folder/$1" ] && return
    printf '%s' "$2" >"$folder/.$1.new"
    chmod 0444 "$folder/.$1.new"
    mv "$folder/.$1.new" "$folder/$1"
    echo "secrets.sh: made $folder/$1" >&2
}

keep grafana_admin_password "$(random)"
keep postgres_password "$(random)"
keep ray_token "$(random)"
keep database_url "postgresql://fewstep:$(cat "$folder/postgres_password")@postgres:5432/fewstep"
