#!/usr/bin/env bash
# Stop what cluster-up.sh started in DIR, by the pids which it wrote, and nothing else.
D=$(realpath -m "${1:?directory}"); export SLURM_CONF=$D/etc/slurm.conf
timeout 10 scancel -u "$(id -un)" 2>/dev/null
sleep 0.5
for file in "$D"/pids/slurmd.* "$D"/pids/{slurmctld,slurmdbd,mariadbd,munged}; do
  [ -f "$file" ] || continue
  pid=$(cat "$file"); kill "$pid" 2>/dev/null
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null; rm -f "$file"
done
true
