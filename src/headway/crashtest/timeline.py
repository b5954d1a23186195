"""One HTML page of a failing trace: every change a row, what the crash kept and lost, where the power went. No scripts, no network."""

from html import escape

from headway.crashtest.explain import Finding, Shapes
from headway.crashtest.history import History

_STYLE = """
body{font:14px system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c1c1c;background:#fff}
table{border-collapse:collapse;width:100%}td{padding:.15rem .6rem;border-bottom:1px solid #eee;font-family:ui-monospace,monospace}
.kept td:first-child{color:#137333}.lost{background:#fce8e6}.lost td:first-child{color:#b3261e}.cause td{font-weight:700}
.sync{color:#5f6368}.marker{background:#e8f0fe}.cut td{background:#1c1c1c;color:#fff;text-align:center}.after{opacity:.4}
"""


def page(history: History, finding: Finding, title: str) -> str:
    """`title` says which run and bug; the table marks the cause in bold."""
    names = Shapes(history)
    failure = finding.failure
    rows = []
    for place, micro in enumerate(history.micros):
        if micro.kind == "sync":
            style, state = "sync", "sync"
        elif micro.kind == "marker":
            style, state = "marker", "program"
        else:
            kept = failure.kept >> place & 1
            style, state = ("kept", "on disk") if kept else ("lost", "lost")
        if place > failure.after:
            style, state = "after", ""
        if place in finding.lost or place == finding.survived:
            style += " cause"
        rows.append(f'<tr class="{style}"><td>{state}</td><td>{place}</td><td>{escape(names.describe(micro))}</td></tr>')
        if place == failure.after:
            rows.append('<tr class="cut"><td colspan="3">power cut</td></tr>')
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(finding.title)}</h1><p>{escape(title)}, model {escape(history.model.name)}</p>"
        f"<p><strong>{escape(finding.verdict)}</strong></p><p>Missing: {escape(str(finding.barrier))}"
        f"{f'; {escape(failure.variant)}' if failure.variant else ''}</p><table>{''.join(rows)}</table></html>\n"
    )
