#!/usr/bin/env bash
# Start a private, throw-away Slurm cluster on one host: no systemd, nothing in /etc.
# usage: cluster-up.sh DIR [sacct]     then: source DIR/env.sh
# With `sacct` a MariaDB and slurmdbd keep accounts. NODES, CPUS, MEM, GPUS, BASEPORT may be set.
set -euo pipefail
D=$(realpath -m "${1:?directory}"); ACCOUNTING=${2:-}
NODES=${NODES:-2}; CPUS=${CPUS:-8}; MEM=${MEM:-6000}; GPUS=${GPUS:-2}; BASEPORT=${BASEPORT:-16800}
HOST=$(hostname -s); ME=$(id -un)
mkdir -p "$D"/{etc,run,log,state,spool,gpu,pids,bin}
chmod 755 "$D" "$D/run" "$D/etc"
export SLURM_CONF=$D/etc/slurm.conf

start() { # start NAME COMMAND...: in the background, its pid kept for cluster-down.sh
  local name=$1; shift
  setsid "$@" > "$D/log/$name.out" 2>&1 < /dev/null & echo $! > "$D/pids/$name"
}
wait_for() { # wait_for SECONDS COMMAND...
  local tenths=$(($1 * 10)); shift
  for _ in $(seq "$tenths"); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done
  echo "gave up waiting for: $*" >&2; tail -n 20 "$D"/log/* >&2; exit 1
}

# A fake GPU is a character device whose name ends in a number. A plain file gives the job no
# CUDA_VISIBLE_DEVICES, a count without a file leaves the node invalid.
gpu_file() {
  local file=$D/gpu/node$1-gpu$2
  [ -c "$file" ] || mknod "$file" c 1 3 2>/dev/null || file=/dev/tty$((10 * $1 + $2))
  echo "$file"
}

[ -s "$D/etc/munge.key" ] || (umask 077; head -c 1024 /dev/urandom > "$D/etc/munge.key")
chmod 400 "$D/etc/munge.key"

{
cat <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$((BASEPORT + 17))
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.socket
SlurmUser=$ME
SlurmdUser=$ME
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=200000,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
KillWait=3
SlurmdTimeout=10
InactiveLimit=0
MinJobAge=3600
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
if [ "$ACCOUNTING" = sacct ]; then cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((BASEPORT + 19))
AccountingStoragePass=$D/run/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
AccountingStorageEnforce=limits
CONF
fi
for n in $(seq "$NODES"); do
  echo "NodeName=node$n NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((BASEPORT + 20 + n)) CPUs=$CPUS" \
    "Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM Gres=gpu:fake:$GPUS,gpu:big:1"
done
echo "PartitionName=cpu Nodes=ALL Default=YES MaxTime=1-00:00:00 DefMemPerCPU=200"
echo "PartitionName=gpu Nodes=ALL MaxTime=1-00:00:00 DefMemPerCPU=200"
echo "PartitionName=big Nodes=ALL MaxTime=1-00:00:00 DefMemPerCPU=200"
echo "PartitionName=urgent Nodes=ALL MaxTime=1-00:00:00 DefMemPerCPU=200 PriorityTier=10"
} > "$D/etc/slurm.conf"
for n in $(seq "$NODES"); do for g in $(seq 0 $((GPUS - 1))); do
  echo "NodeName=node$n Name=gpu Type=fake File=$(gpu_file "$n" "$g")"
done
echo "NodeName=node$n Name=gpu Type=big File=$(gpu_file "$n" "$GPUS")"
done > "$D/etc/gres.conf"
echo "CgroupPlugin=cgroup/v1" > "$D/etc/cgroup.conf"  # `disabled` is fatal on 22.05

# The Snakemake jobstep plugin drops SLURM_CONF inside jobs: these bring it back.
for c in srun sbatch scontrol squeue sacct scancel sstat sinfo; do
  printf '#!/bin/sh\nSLURM_CONF=%s exec /usr/bin/%s "$@"\n' "$SLURM_CONF" "$c" > "$D/bin/$c"
  chmod 755 "$D/bin/$c"
done
echo "export SLURM_CONF=$SLURM_CONF PATH=$D/bin:\$PATH" > "$D/env.sh"
[ "$ACCOUNTING" = sacct ] || rm "$D/bin/sacct"

start munged munged --foreground --force --key-file="$D/etc/munge.key" \
  --socket="$D/run/munge.socket" --pid-file="$D/run/munged.pid" --log-file="$D/log/munged.log" \
  --seed-file="$D/state/munge.seed" --num-threads=4
wait_for 10 test -S "$D/run/munge.socket"

if [ "$ACCOUNTING" = sacct ]; then
  SOCKET=$D/mysql/socket
  mkdir -p "$D/mysql/data"
  [ -d "$D/mysql/data/mysql" ] || mariadb-install-db --no-defaults --user="$ME" \
    --datadir="$D/mysql/data" --auth-root-authentication-method=socket \
    --auth-root-socket-user="$ME" --skip-test-db > "$D/log/mariadb-install.out" 2>&1
  start mariadbd mariadbd --no-defaults --user="$ME" --datadir="$D/mysql/data" --socket="$SOCKET" \
    --port=$((BASEPORT + 18)) --bind-address=127.0.0.1 --pid-file="$D/run/mariadbd.pid" \
    --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 \
    --innodb-flush-log-at-trx-commit=0 --skip-name-resolve
  wait_for 30 mariadb-admin --no-defaults -S "$SOCKET" ping
  mariadb --no-defaults -S "$SOCKET" -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
    CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
    GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';"
  (umask 077; cat > "$D/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.socket
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((BASEPORT + 19))
SlurmUser=$ME
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((BASEPORT + 18))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
  )
  start slurmdbd slurmdbd -D
  wait_for 30 sacctmgr -n -i show cluster
  sacctmgr -i add cluster test > /dev/null
  sacctmgr -i add account lab Cluster=test > /dev/null
  sacctmgr -i add user "$ME" Account=lab > /dev/null
fi

start slurmctld slurmctld -D
wait_for 20 sh -c 'scontrol ping | grep -q "is UP"'
for n in $(seq "$NODES"); do
  mkdir -p "$D/spool/node$n"
  start "slurmd.node$n" slurmd -D -N "node$n"
done
idle() { [ "$(sinfo -h -N -p cpu -t idle -o %N | wc -l)" = "$NODES" ]; }
wait_for 30 idle
