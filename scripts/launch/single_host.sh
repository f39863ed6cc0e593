#!/usr/bin/env bash
# All GPUs of one host: scripts/launch/single_host.sh --data DIR --batch-size 32 ...
# One process drives them; CUDA_VISIBLE_DEVICES=0,1 takes some of them only.
set -euo pipefail
exec vfnet train --strategy mirrored "$@"
