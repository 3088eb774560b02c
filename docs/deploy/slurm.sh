#!/usr/bin/env bash
# SLURM: one Ray node per machine of the allocation, the grid on the first. sbatch docs/deploy/slurm.sh
# When the time is over, submit it again: it runs what is missing.
#SBATCH --job-name=kdbench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail

export KDBENCH_DATA=${KDBENCH_DATA:-$HOME/data}        # on shared storage
export KDBENCH_CACHE=${KDBENCH_CACHE:-/tmp/kdbench-$USER} # on each machine
results=${RESULTS:-$HOME/kdbench-results}

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 -w "${hosts[0]}" hostname --ip-address | awk '{print $1}'):6379

srun --nodes=1 --ntasks=1 -w "${hosts[0]}" \
    ray start --head --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_PER_NODE" --block &
sleep 20 # the head must answer before the others join
for host in "${hosts[@]:1}"; do
    srun --nodes=1 --ntasks=1 -w "$host" \
        ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_PER_NODE" --block &
done
sleep 10

srun --nodes=1 --ntasks=1 --overlap -w "${hosts[0]}" \
    kdbench run --methods stfpm,dcam,snl,dskd,rd4ad --dataset mvtec_ad --setting both --seeds 0,1,2 \
    --address "$address" --results "$results"
