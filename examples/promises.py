"""Ask for a tight promise; when it cannot be kept, read the quote in the refusal and ask for what can. Standard library only."""

import json
import os
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8000/v1/chat/completions"


def ask(text: str, slo: dict[str, float]) -> dict[str, object]:
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": text}], "temperature": 0.2, "max_tokens": 64, "slo": slo}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("HEADWAY_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    with urllib.request.urlopen(urllib.request.Request(URL, json.dumps(body).encode(), headers)) as reply:
        return json.load(reply)


try:
    answer = ask("Why is the sky blue?", {"ttft_ms": 1, "tpot_ms": 1})
except urllib.error.HTTPError as refusal:
    if refusal.code != 429:
        raise
    quote = json.load(refusal)["error"].get("headway", {}).get("quote")
    print(f"refused; the nearest promise: {quote}")
    answer = ask("Why is the sky blue?", {"ttft_ms": 2000, "tpot_ms": 200})
print(answer["choices"][0]["message"]["content"])  # type: ignore[index]
print(answer["headway"])
