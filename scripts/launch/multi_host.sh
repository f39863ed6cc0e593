#!/usr/bin/env bash
# One process per host over ssh, from any machine that reaches all of them:
#   HOSTS="gpu1 gpu2" scripts/launch/multi_host.sh --data /shared/coco --out /shared/run ...
# Every host has the package, and the data and run directory under the same shared path.
# PORT (12345) must be free and open between the hosts. VFNET is the command on them.
set -euo pipefail
: "${HOSTS:?set HOSTS to the names of the hosts, the chief first}"
port=${PORT:-12345}
vfnet=${VFNET:-vfnet}

workers=""
for host in $HOSTS; do
  workers+="${workers:+, }\"$host:$port\""
done

pids=()
# Ending this script ends all of them: ssh -tt passes the hang-up on.
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
index=0
for host in $HOSTS; do
  config="{\"cluster\": {\"worker\": [$workers]}, \"task\": {\"type\": \"worker\", \"index\": $index}}"
  command=$(printf '%q ' env "TF_CONFIG=$config" "$vfnet" train --strategy multi_worker "$@")
  ssh -tt "$host" "$command" &
  pids+=($!)
  index=$((index + 1))
done
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
