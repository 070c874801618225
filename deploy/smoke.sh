#!/usr/bin/env bash
# Brings the installation up for real and tries it: images, health, a picture, metrics, dashboards, a killed container,
# what it says about bad settings. Takes everything down again; exit code 0 when every check passed.
#   deploy/smoke.sh            the default profile
#   deploy/smoke.sh jobs-cpu   also PostgreSQL, a worker and a tiny distillation job; jobs: on an NVIDIA GPU
#   deploy/smoke.sh ray        also a Ray cluster of two nodes with the server as its Serve application
# On an unusual engine:
#   SMOKE_CONFIG   called with -f FILE --profile '*'; prints the compose file to use. Default: docker compose ... config
#   SMOKE_INSIDE   called with PROJECT COMMAND...; runs a command where the published ports are. Default: runs it here
#   SMOKE_READY_SECONDS   how long the server may take to be ready. Default: 3
#   SMOKE_BUILD    1 builds the images first (default), 0 takes those that are there
# Variables of deploy/.env.example hold as ever.
set -euo pipefail
cd "$(dirname "$0")/.."

project=fewstep-smoke
here=$(mktemp -d)
export COMPOSE_PROJECT_NAME=$project
profiles=() worker='' ray=''
for name in "$@"; do
    profiles+=(--profile "$name")
    case $name in
    jobs) worker=worker ;;
    jobs-cpu) worker="worker-cpu" ;;
    ray) ray=1 ;;
    esac
done
[ -z "$worker" ] || export DATABASE_URL_FILE=/run/secrets/database_url
passed=0 failed=0

say() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$*"; }
inside() { if [ -n "${SMOKE_INSIDE:-}" ]; then $SMOKE_INSIDE "$project" "$@"; else "$@"; fi; }
get() { inside curl --silent --show-error --fail --noproxy '*' --max-time 60 "$@"; }
compose() { docker compose --project-name "$project" --file "$here/compose.json" "${profiles[@]}" "$@"; }
container() { compose ps --quiet --all "$1"; }
ask() { get --get http://127.0.0.1:9090/api/v1/query --data-urlencode "query=$1"; }

check() { # NAME COMMAND...
    local name=$1 began=$SECONDS && shift
    if "$@" >"$here/check.log" 2>&1; then
        passed=$((passed + 1)) && say "ok      $name ($((SECONDS - began)) s)"
    else
        failed=$((failed + 1)) && say "FAILED  $name" && tail -15 "$here/check.log"
    fi
}
until_true() { # SECONDS COMMAND...
    local deadline=$((SECONDS + $1)) && shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { "$@" && return 0 || return 1; }
        sleep 1
    done
}

take_down() {
    # Every profile: restore.sh makes the volumes of all, whichever run.
    [ ! -s "$here/compose.json" ] || compose --profile '*' down --volumes --timeout 10 >/dev/null 2>&1 || true
    rm -rf "$here"
}
trap take_down EXIT

# ---- the checks
healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$(container "$1")")" = healthy ]; }
up_and_healthy() { compose up --detach --wait --wait-timeout 600; }
picture() { # BODY [PORT] -> the answer
    get "http://127.0.0.1:${2:-8000}/v1/images/generations" --header 'Content-Type: application/json' --data "$1"
}
draws() { picture '{"prompt": "a red circle on a white background", "seed": 7}' "$1" | grep -q '"b64_json": *"iVBORw0KGgo'; } # PORT
is_png() { draws 8000; }
same_twice() {
    local first second body='{"prompt": "a blue star on a white background", "seed": 3}'
    first=$(picture "$body" | grep -o '"b64_json": *"[^"]*"') && second=$(picture "$body" | grep -o '"b64_json": *"[^"]*"')
    [ -n "$first" ] && [ "$first" = "$second" ]
}
sees() { ask "$1" | grep -q '"result":\[{'; }
rules_loaded() { get http://127.0.0.1:9090/api/v1/rules | grep -q FewstepDown; }
nothing_fires() { ! get http://127.0.0.1:9090/api/v1/alerts | grep -q '"state":"firing"'; }
dashboard() {
    local password && password=$(cat deploy/secrets/grafana_admin_password)
    get "http://127.0.0.1:3000/api/dashboards/uid/$1" --user "admin:${GRAFANA_PASSWORD:-$password}" | grep -q '"panels"'
}
root_is_read_only() { ! compose exec -T api python -c 'open("/opt/x", "w")' && ! compose exec -T api python -c 'open("/x", "w")'; }
runs_as_nobody() { [ "$(compose exec -T api id -u)" = 10001 ]; }
has_no_torch() { ! compose exec -T api python -c 'import torch'; }
has_a_package_list() { compose exec -T api python -c 'import json; assert json.load(open("/opt/fewstep/share/sbom.cdx.json"))["components"]'; }
kill_process() { # SERVICE WORD: as the kernel would: the process, not the container, which docker would leave dead
    compose exec -T "$1" python -c '
import os, signal, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    words = open(f"/proc/{pid}/cmdline").read().split("\0")
    if pid not in ("1", str(os.getpid())) and any(word.endswith(sys.argv[1]) for word in words):
        os.kill(int(pid), signal.SIGKILL)' "$2" || true
}
restarted() { [ "$(docker inspect --format '{{.RestartCount}}' "$(container "$1")")" -gt 0 ]; }
refuses() { # WORDS DOCKER-ARGUMENTS...: the container ends with 2 and its last line has the words
    local words=$1 code=0 && shift
    timeout 120 docker run --rm --network "${network:-none}" "$@" >"$here/refused" 2>&1 || code=$?
    cat "$here/refused"
    [ "$code" = 2 ] && tail -1 "$here/refused" | grep -q "$words"
}
server_refuses() { # WORDS DOCKER-ARGUMENTS...
    refuses "$@" "${API_IMAGE:-fewstep/serve}"
}
port_is_taken() {
    local network && network=container:$(container api)
    server_refuses 'cannot listen on 0.0.0.0:8000: Address already in use; .*FEWSTEP_PORT'
}
worker_refuses() { refuses "$@" --entrypoint fewstep "$(docker inspect --format '{{.Config.Image}}' "$(container "$worker")")" worker; }
grafana_wants_its_password() {
    local code=0
    compose run --rm --no-deps -T --env GF_SECURITY_ADMIN_PASSWORD__FILE=/run/secrets/none grafana >"$here/refused" 2>&1 || code=$?
    cat "$here/refused"
    [ "$code" = 2 ] && tail -1 "$here/refused" | grep -q '/run/secrets/none is missing or empty'
}
no_gpu_no_container() {
    local code=0
    docker run --rm --network none --gpus all "${API_IMAGE:-fewstep/serve}" || code=$?
    [ "$code" = 125 ]
}
ready_within() { # SECONDS from docker run to readiness
    local id began=${EPOCHREALTIME/[.,]/} until
    until=$((began + 60000000))
    id=$(docker run --detach --rm --network none "${API_IMAGE:-fewstep/serve}")
    until docker exec "$id" fewstep-ready >/dev/null 2>&1 || [ "${EPOCHREALTIME/[.,]/}" -gt $until ]; do sleep 0.05; done
    echo $(((${EPOCHREALTIME/[.,]/} - began) / 1000)) >"$here/milliseconds"
    docker kill "$id" >/dev/null
    [ "$(cat "$here/milliseconds")" -lt "$((1000 * $1))" ]
}
drained() {
    compose stop api
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$(container api)")" = 0 ]
}

jobs_api=http://127.0.0.1:8000/v1/distillation/jobs
field() { grep -o "\"$1\": *\"[^\"]*\"" | head -1 | cut -d'"' -f4; }
submit() {
    printf '{"prompt": "a red circle on a white background"}\n{"prompt": "a blue star on a white background"}\n' >"$here/prompts.jsonl"
    get http://127.0.0.1:8000/v1/files --form purpose=fine-tune --form "file=@$here/prompts.jsonl" | field id >"$here/file"
    get $jobs_api --header 'Content-Type: application/json' --data '{"model": "shapes-sana", "training_file": "'"$(cat "$here/file")"'",
        "method": {"type": "sid", "sid": {"iterations": '"${SMOKE_ITERATIONS:-40}"', "batch": 4}}, "suffix": "smoke"}' | field id >"$here/job"
    [ -s "$here/job" ]
}
state() { get "$jobs_api/$(cat "$here/job")" | field status; }
is_state() { [ "$(state)" = "$1" ]; }
database_says_no_and_pictures_go_on() {
    compose stop --timeout 10 postgres
    ! get --max-time 60 $jobs_api && is_png && compose start postgres && until_true 60 healthy postgres && until_true 60 get $jobs_api
}

every_profile_is_valid() { # and without a warning
    local name said
    for name in '' gpu jobs jobs-cpu ray '*'; do
        said=$(docker compose --file deploy/compose.yaml --profile "$name" config --quiet 2>&1) && [ -z "$said" ] || { echo "$name: $said" && return 1; }
    done
}
services() { docker compose --project-name "$project" --file "$here/compose.json" --profile '*' ps --services | sort; }
same_services() { diff "$here/services" <(services); }

scripts() { COMPOSE_FILE=$here/compose.json "$@"; }
started_without_its_database() {
    compose stop --timeout 10 postgres && compose restart api && until_true 120 healthy api && is_png
    compose start postgres && until_true 60 healthy postgres && until_true 60 get $jobs_api
}

lose_everything() { compose down --volumes --timeout 10 && up_and_healthy; }
job_is_unknown() { ! state; }

ray_port=${RAY_PORT:-8002}
on_head() { compose exec -T ray-head "$@"; }
strangers_are_refused() {
    on_head env -u RAY_AUTH_MODE -u RAY_AUTH_TOKEN_PATH python -c '
import urllib.error, urllib.request
try: urllib.request.urlopen("http://127.0.0.1:8265/api/jobs/")
except urllib.error.HTTPError as error: assert error.code == 401, error
else: raise SystemExit("anybody may look at the jobs")'
}
has_two_nodes() { on_head ray list nodes --format json | grep -o '"state": "ALIVE"' | wc -l | grep -qx 2; }
takes_a_job() { on_head ray job submit --address http://127.0.0.1:8265 -- fewstep --help | grep 'usage: fewstep'; }
wrong_file() {
    printf 'applications: [{name: fewstep, import_path: "fewstep.ray_serve:build", args: {settings: {queu_limit: 3}}}]' >"$here/serve.yaml"
    chmod 0755 "$here" && chmod 0644 "$here/serve.yaml"
    refuses 'FEWSTEP_QUEU_LIMIT is not a setting' --entrypoint fewstep-ray-head --volume "$here/serve.yaml:/x.yaml:ro" "${RAY_IMAGE:-fewstep/serve-ray}" /x.yaml
}

say "fewstep smoke test, $(date -u +%Y-%m-%d), profiles: default $*"
say "docker $(docker version --format '{{.Server.Version}}'), compose $(docker compose version --short), $(nproc) cores"
deploy/secrets.sh 2>/dev/null
# All services, so that those that are waited for are there; which of them run is up to the profiles, as ever.
if [ -n "${SMOKE_CONFIG:-}" ]; then
    $SMOKE_CONFIG -f deploy/compose.yaml --profile '*' >"$here/compose.json"
else
    docker compose -f deploy/compose.yaml --profile '*' config --format json >"$here/compose.json"
fi
check "docker compose config is clean for every profile" every_profile_is_valid
[ "${SMOKE_BUILD:-1}" = 0 ] || check "the images are built" compose build
say "        $(docker image inspect --format 'the server: {{.Size}} bytes' "${API_IMAGE:-fewstep/serve}")"

check "the server alone is ready within ${SMOKE_READY_SECONDS:-3} s of docker run" ready_within "${SMOKE_READY_SECONDS:-3}"
say "        $(cat "$here/milliseconds") ms"
check "everything comes up healthy" up_and_healthy
check "it draws a picture" is_png
check "the same seed draws the same picture" same_twice
check "Prometheus sees the server" until_true 90 sees 'up{job="fewstep", hardware="cpu"} == 1'
check "Prometheus has counted the pictures" until_true 90 sees 'sum(fewstep_images_total) >= 3'
check "Prometheus has loaded the rules" rules_loaded
check "no alert fires" nothing_fires
check "Grafana has the dashboard of serving" dashboard fewstep-serving
check "Grafana has the dashboard of the fleet" dashboard fewstep-fleet
check "the server runs as nobody in particular" runs_as_nobody
check "its root file system is read only" root_is_read_only
check "there is no torch in it" has_no_torch
check "there is a list of its packages in it" has_a_package_list

say "        the server's process is killed"
kill_process api /fewstep
check "the container is started again" until_true 60 restarted api
check "it is healthy again" until_true 120 healthy api
check "it draws again" until_true 30 is_png

check "without its password Grafana does not start" grafana_wants_its_password
check "a port that is taken ends the container" port_is_taken

say "        Prometheus and Grafana are stopped"
compose stop --timeout 10 prometheus grafana >/dev/null 2>&1
check "the server goes on without them" is_png
check "they come back" up_and_healthy

if [ -n "$worker" ]; then
    check "a job is taken on" submit
    check "the worker runs it" until_true 180 is_state running
    check "Prometheus sees its progress" until_true 300 sees 'fewstep_job_progress_ratio > 0'
    check "Prometheus counts it as running" until_true 60 sees 'max(fewstep_jobs{status="running"}) == 1'
    check "Grafana has the dashboard of jobs" dashboard fewstep-jobs
    say "        the worker's process is killed, the job's with it"
    kill_process "$worker" /fewstep
    check "the worker is started again" until_true 60 restarted "$worker"
    check "the job goes on and succeeds" until_true 1200 is_state succeeded
    check "without PostgreSQL jobs are refused, pictures are drawn, and jobs come back" database_says_no_and_pictures_go_on
    check "a server that is started without PostgreSQL draws, and has its jobs when it comes" started_without_its_database
    check "the finished job is still known" is_state succeeded
    check "a backup is made while all runs" scripts deploy/backup.sh "$here/backup"
    say "        containers and volumes are removed"
    check "everything comes up empty" lose_everything
    check "the job is unknown" job_is_unknown
    check "the backup is restored" scripts deploy/restore.sh "$here/backup"
    check "the job that succeeded is known again" until_true 60 is_state succeeded
    check "its student is there" compose exec -T api sh -c 'ls /data/artifacts/*/student.json'
else
    services >"$here/services"
    check "a backup is made while all runs" scripts deploy/backup.sh "$here/backup"
    check "it is restored" scripts deploy/restore.sh "$here/backup"
    check "and nothing else was started by that" same_services
fi
check "the restored server draws" until_true 60 is_png

if [ -n "$ray" ]; then
    check "the application on Ray draws" until_true 300 draws "$ray_port"
    check "the cluster has two nodes" until_true 120 has_two_nodes
    check "Prometheus sees the application run" until_true 120 sees 'ray_serve_application_status{application="fewstep"} == 6'
    check "strangers are refused by Ray" strangers_are_refused
    check "a command can be submitted to Ray" takes_a_job
    say "        a replica's process is killed"
    kill_process ray-head ServeReplica:fewstep:Engine
    check "it draws again" until_true 120 draws "$ray_port"
    check "a wrong serve.yaml ends the head" wrong_file
fi

check "a misspelt setting ends the container" server_refuses 'FEWSTEP_QUEU_LIMIT is not a setting; did you mean FEWSTEP_QUEUE_LIMIT' -e FEWSTEP_QUEU_LIMIT=3
check "a bad value ends it" server_refuses 'FEWSTEP_QUEUE_LIMIT' -e FEWSTEP_QUEUE_LIMIT=many
check "a bundle that is not there ends it" server_refuses "no bundle '/nothing'" -e FEWSTEP_MODELS=x=/nothing
check "TensorRT where there is none ends it" server_refuses 'model shapes-sana-sid' -e FEWSTEP_BACKEND=tensorrt
check "a folder that cannot be written to ends it" server_refuses 'cannot keep pictures' --read-only --mount "type=bind,source=$here,target=/data,readonly"
check "a secret that is not there ends it" server_refuses 'FEWSTEP_API_KEYS_FILE: .*No such file' -e FEWSTEP_API_KEYS_FILE=/run/secrets/none
check "an empty one ends it" server_refuses 'FEWSTEP_DATABASE_URL_FILE: .*it is empty' -e FEWSTEP_DATABASE_URL_FILE=/dev/null
check "a runtime that is none ends it" server_refuses 'FEWSTEP_BACKEND.*expected one of auto, tensorrt' -e FEWSTEP_BACKEND=cuda
check "keys that are not there end it" server_refuses 'FEWSTEP_API_KEYS.*fewstep keys add' -e FEWSTEP_API_KEYS=/data/none
if [ -n "$worker" ]; then
    check "a worker that cannot write ends" worker_refuses 'cannot keep jobs' --mount "type=bind,source=$here,target=/data,readonly"
fi
# With NVIDIA's runtime there it would start.
[ "$(docker info --format '{{json .Runtimes}}' | grep -c nvidia)" = 1 ] || check "a GPU where there is none: no container" no_gpu_no_container

check "it drains and ends with 0" drained
say "$passed passed, $failed failed"
[ "$failed" = 0 ]
