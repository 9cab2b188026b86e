#!/usr/bin/env bash
# Time to first token, inter-token latency and throughput at 1, 4 and 16 streams, through `forge bench`.
#
#   scripts/benchmark.sh [MODEL]                        start `forge run MODEL` (default: smollm2) and stop it again
#   FORGE_URL=http://host:8080 scripts/benchmark.sh     measure a server that runs already
#
# FORGE: the command to start (default: forge, or the one in .venv). FORGE_TIMEOUT: seconds that loading may take (300).
# BENCH_FLAGS: more flags for `forge bench`, such as "--requests 64 --json out.json --plot out.png".
set -euo pipefail

model=${1:-smollm2}
url=${FORGE_URL:-}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
forge=${FORGE:-$(command -v forge || printf '%s' "$root/.venv/bin/forge")}
read -r -a flags <<<"${BENCH_FLAGS:-}"

if [[ -z $url ]]; then
    log=$(mktemp)
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    "$forge" run "$model" --host 127.0.0.1 --port "$port" >"$log" 2>&1 &
    server=$!
    trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$log"' EXIT
    until curl --silent --fail --max-time 5 --output /dev/null "$url/health"; do
        if ! kill -0 "$server" 2>/dev/null || ((SECONDS > ${FORGE_TIMEOUT:-300})); then
            printf 'the server did not come up; it said:\n' >&2
            tail -n 100 "$log" >&2
            exit 1
        fi
        sleep 0.2
    done
fi

"$forge" bench "$url" --concurrency 1,4,16 ${flags[@]+"${flags[@]}"}
