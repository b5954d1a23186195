"""Front process: the OpenAI-compatible HTTP API, the chat page, the dashboard and /metrics. Never imports numba or llvmlite.

`app.build_app` makes the ASGI application, `run.serve` the process around it.
"""
