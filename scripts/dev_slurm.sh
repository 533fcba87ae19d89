#!/usr/bin/env bash
# Starts Slurm with one node and two fake GPUs on the loopback interface, to try sweeps without a cluster. Run it as root, on Debian 12.
#   bash scripts/dev_slurm.sh start [folder]    installs Debian's packages if need be; then: export SLURM_CONF=<folder>/slurm.conf
#   bash scripts/dev_slurm.sh stop [folder]
set -euo pipefail
DIR=$(realpath -m "${2:-/tmp/dev_slurm}")
case ${1:-} in
stop)
    for name in slurmctld slurmd munge/munged; do [ ! -f "$DIR/$name.pid" ] || kill "$(cat "$DIR/$name.pid")" 2>/dev/null || true; done
    exit ;;
start) ;;
*) echo "start or stop" >&2; exit 2 ;;
esac
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
fi
HOST=$(hostname -s) CORES=$(nproc)
rm -rf "$DIR"
mkdir -p "$DIR"/{state,spool,log,munge,fakedev}
for i in 0 1; do mknod "$DIR/fakedev/nvidia$i" c 1 3; done   # Slurm needs character devices: these are copies of /dev/null
chmod 700 "$DIR/munge"
dd if=/dev/urandom of="$DIR/munge/key" bs=64 count=1 status=none && chmod 600 "$DIR/munge/key"
cat > "$DIR/gres.conf" <<CONF
NodeName=$HOST Name=gpu File=$DIR/fakedev/nvidia[0-1]
CONF
cat > "$DIR/slurm.conf" <<CONF
ClusterName=dev
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/munge/munge.socket
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
JobRequeue=1
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmctldPort=16817
SlurmdPort=16818
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$CORES Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=$HOST Default=YES MaxTime=INFINITE State=UP
CONF
munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/munge.socket" --pid-file="$DIR/munge/munged.pid" \
    --log-file="$DIR/munge/munged.log" --seed-file="$DIR/munge/seed"
export SLURM_CONF="$DIR/slurm.conf"
slurmctld -c && slurmd
for _ in $(seq 50); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.2; done
sinfo
echo "export SLURM_CONF=$DIR/slurm.conf"
