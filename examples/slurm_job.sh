#!/usr/bin/env bash
#SBATCH --job-name=dlock-example
#SBATCH --ntasks=4
#SBATCH --time=00:10:00
#
# A job that brings its own lock service. The batch script runs on the job's first node; it starts a
# primary there, on a port that is free, and the tasks find it by a file on the shared file system.
# Nobody else has to run anything, and two jobs never meet.
#
#   sbatch examples/slurm_job.sh
#
# SHARED   a folder that all nodes see (default: where sbatch was called)
# LISTEN   where the primary listens (default: all addresses, any port)
# DLOCK    the dlock command (default: dlock)
# PYTHON   the interpreter that has dlock (default: python3)
# EXAMPLES the folder of slurm_task.py (default: examples, below where sbatch was called)
set -euo pipefail

shared=${SHARED:-$SLURM_SUBMIT_DIR}
python=${PYTHON:-python3}
examples=${EXAMPLES:-$SLURM_SUBMIT_DIR/examples}
address_file=$shared/dlock-$SLURM_JOB_ID.address

"${DLOCK:-dlock}" serve --listen "${LISTEN:-0.0.0.0:0}" --address-file "$address_file" &
primary=$!

finish() {
    kill "$primary" 2>/dev/null || true
    wait "$primary" || true
    # What it would need to start again after a crash, in the middle of the job; now nobody does.
    rm -rf "$address_file.state"
}
trap finish EXIT

# The file may not be there yet, and may not be seen by other nodes for a while: tasks wait for it.
export DLOCK_ADDRESS=file:$address_file
srun "$python" "$examples/slurm_task.py" "$shared/dlock-$SLURM_JOB_ID.results"
