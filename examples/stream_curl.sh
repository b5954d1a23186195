#!/bin/sh
# A stream with a promise, from the shell. The last chunk carries how the promise went.
exec curl --no-buffer --include "${1:-http://127.0.0.1:8000}/v1/chat/completions" \
    ${HEADWAY_API_KEY:+-H "Authorization: Bearer $HEADWAY_API_KEY"} \
    -H 'Content-Type: application/json' -H 'x-slo-ttft-ms: 500' -H 'x-slo-tpot-ms: 50' \
    -d '{"model": "smollm2-135m", "stream": true, "temperature": 0.2, "max_tokens": 64, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
