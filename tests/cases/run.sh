#!/usr/bin/env bash
# Run every reported case that refcli was once wrong about, the slow ones too. Options go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python -m pytest tests/cases -m "slow or not slow" "$@"
