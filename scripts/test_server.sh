#!/usr/bin/env bash
# Try a server from outside, with curl alone: health, models, plain and streamed chat, a refused request, the way down.
#
#   scripts/test_server.sh [MODEL]                        start `forge run MODEL` (default: smollm2) and stop it again
#   FORGE_URL=http://host:8080 scripts/test_server.sh     try a server that runs already
#
# FORGE: the command to start (default: forge, or the one in .venv). FORGE_TIMEOUT: seconds that loading may take (300).
set -euo pipefail

model=${1:-smollm2}
seconds=${FORGE_TIMEOUT:-300}
url=${FORGE_URL:-}
knows_paris=no
if [[ $model == smollm2 && -z $url ]]; then
    knows_paris=yes
fi

work=$(mktemp -d)
log=$work/server.log
body=$work/body
server=

is_running() {
    [[ -n $server ]] && kill -0 "$server" 2>/dev/null
}

clean_up() {
    if is_running; then
        kill -TERM "$server"
        for ((i = 0; i < 50; i++)); do
            is_running || break
            sleep 0.1
        done
        kill -KILL "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap clean_up EXIT

passed() {
    printf 'ok    %s\n' "$1"
}

fail() {
    printf 'FAIL  %s\n' "$1" >&2
    if [[ -s $body ]]; then
        printf -- '---- the last answer:\n%s\n' "$(head -c 4000 "$body")" >&2
    fi
    if [[ -s $log ]]; then
        printf -- '---- the server said:\n' >&2
        tail -n 100 "$log" >&2
    fi
    exit 1
}

# request WHAT STATUS CURL-ARGUMENTS...: leaves the answer in $body, fails unless it has that status.
request() {
    local what=$1 wanted=$2 status
    shift 2
    status=$(curl --silent --show-error --max-time 120 --output "$body" --write-out '%{http_code}' "$@") ||
        fail "$what: no answer"
    [[ $status == "$wanted" ]] || fail "$what: status $status, not $wanted"
}

# chat WHAT STATUS JSON: the same for a chat completion with this body.
chat() {
    local what=$1 wanted=$2 json=$3
    request "$what" "$wanted" --no-buffer --header 'Content-Type: application/json' --data "$json" \
        "$url/v1/chat/completions"
}

# answer EXPRESSION: a Python expression over `answer`, the JSON in $body; printed, and nothing if it fails.
answer() {
    python3 -c "import json, sys; answer = json.load(open(sys.argv[1], 'rb')); print($1)" "$body" 2>>"$log" || true
}

start_server() {
    local forge root port
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    forge=${FORGE:-$(command -v forge || printf '%s' "$root/.venv/bin/forge")}
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    "$forge" run "$model" --host 127.0.0.1 --port "$port" >"$log" 2>&1 &
    server=$!
}

wait_until_healthy() {
    local began=$SECONDS status
    while ((SECONDS - began < seconds)); do
        status=$(curl --silent --max-time 5 --output "$body" --write-out '%{http_code}' "$url/health" || true)
        if [[ $status == 200 ]]; then
            passed "GET /health is 200 after $((SECONDS - began)) s"
            return
        fi
        if [[ -n $server ]] && ! is_running; then
            fail "the server ended while it was loading"
        fi
        sleep 0.5
    done
    fail "GET /health is not 200 after $seconds s, but ${status:-nothing}"
}

stop_server() {
    local began=$SECONDS status=0
    kill -TERM "$server"
    while is_running; do
        ((SECONDS - began < 60)) || fail "the server still runs 60 s after SIGTERM"
        sleep 0.1
    done
    wait "$server" || status=$?
    server=
    ((status == 0)) || fail "the server ended with status $status after SIGTERM"
    passed "SIGTERM ends the server cleanly"
}

# ---------------------------------------------------------------------------------------------------------- the checks

if [[ -z $url ]]; then
    start_server
fi
url=${url%/}
wait_until_healthy

request "GET /forge/v1/health" 200 "$url/forge/v1/health"
[[ $(answer 'answer["status"]') == ok ]] || fail 'GET /forge/v1/health: its "status" is not "ok"'
passed "GET /forge/v1/health"

request "GET /v1/models" 200 "$url/v1/models"
id=$(answer 'json.dumps(answer["data"][0]["id"])')
[[ -n $id && $(answer 'answer["object"]') == list ]] || fail "GET /v1/models: no list with a model in it"
passed "GET /v1/models has $id"

question='"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 32, "temperature": 0'

chat "plain chat" 200 "{\"model\": $id, $question}"
text=$(answer 'answer["choices"][0]["message"]["content"]')
[[ -n $text ]] || fail "plain chat: no text"
[[ $(answer 'answer["choices"][0]["finish_reason"] in ("stop", "length")') == True ]] ||
    fail "plain chat: no finish_reason that it could have"
[[ $(answer 'answer["usage"]["completion_tokens"] > 0') == True ]] || fail "plain chat: no usage"
[[ $knows_paris == no || $text == *Paris* ]] || fail "plain chat: no Paris in the answer: $text"
passed "plain chat: $text"

chat "streamed chat" 200 "{\"model\": $id, \"stream\": true, $question}"
streamed=$(
    python3 - "$body" <<'PYTHON' 2>&1
import json
import sys

lines = [line for line in open(sys.argv[1], encoding="utf-8").read().split("\n") if line]
strange = [line for line in lines if not line.startswith(("data: ", ":"))]
events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
if strange:
    sys.exit(f"a line that is no event: {strange[0]}")
if not events or events[-1] != "[DONE]":
    sys.exit("the last line is not data: [DONE]")
chunks = [json.loads(event) for event in events[:-1]]
choices = [choice for chunk in chunks for choice in chunk["choices"]]
if not choices or choices[0]["delta"].get("role") != "assistant":
    sys.exit("no role in the first chunk")
if len({chunk["id"] for chunk in chunks}) != 1:
    sys.exit("more than one id")
reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason") is not None]
if len(reasons) != 1:
    sys.exit(f"{len(reasons)} finish reasons: {reasons}")
print("".join(choice["delta"].get("content") or "" for choice in choices))
PYTHON
) || fail "streamed chat: $streamed"
[[ -n $streamed ]] || fail "streamed chat: no text"
[[ $knows_paris == no || $streamed == *Paris* ]] || fail "streamed chat: no Paris in the answer: $streamed"
passed "streamed chat: $streamed"

chat "an invalid request" 400 "{\"model\": $id, \"messages\": \"not a list\"}"
[[ $(answer 'answer["error"]["type"], answer["error"]["param"]') == "invalid_request_error messages" ]] ||
    fail "an invalid request: no error object that names the field"
[[ -n $(answer 'answer["error"]["message"]') ]] || fail "an invalid request: no message"
passed "an invalid request: $(answer 'answer["error"]["message"]')"

if [[ -n $server ]]; then
    stop_server
fi
printf 'all checks passed\n'
