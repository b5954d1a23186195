"""The OpenAI package against `headway serve`: a stream with its promise, and how it went. Needs: pip install openai."""

import os

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=os.environ.get("HEADWAY_API_KEY", "unused"))
stream = client.chat.completions.create(
    model="smollm2-135m",
    messages=[{"role": "user", "content": "Why is the sky blue?"}],
    temperature=0.2,
    stream=True,
    max_tokens=64,
    extra_headers={"x-slo-ttft-ms": "500", "x-slo-tpot-ms": "50"},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    outcome = (chunk.model_extra or {}).get("headway")
    if outcome:
        print(f"\n{outcome['slo']}")
