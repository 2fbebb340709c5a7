"""Fails where a ghz run had anything but OK: ghz itself ends with 0 even if every call failed.

    ghz --config clients/ghz/recommend.json -O json | python clients/ghz/check.py
    python clients/ghz/check.py REPORT.json ...

Exit code 0: every report had calls, and all were OK. 1: one had not. 2: one is no report of
``ghz -O json``. Needs Python alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(paths: list[str]) -> int:
    """Says one line a report, and returns the exit code."""
    code = 0
    for path in paths or ["-"]:
        name = "standard input" if path == "-" else path
        try:
            text = sys.stdin.read() if path == "-" else Path(path).read_text()
            said, sound = judged(json.loads(text))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            print(f"{name}: no report of ghz -O json: {type(e).__name__}: {e}", file=sys.stderr)
            code = 2
            continue
        print(f"{name}: {said}")
        code = code or int(not sound)
    return code


def judged(report: dict[str, Any]) -> tuple[str, bool]:
    """(what came of a run, whether it had calls and all were OK)."""
    codes: dict[str, int] = report["statusCodeDistribution"] or {}
    calls = report["count"]
    sound = calls > 0 and codes == {"OK": calls}
    shown = ", ".join(f"{code} {count}" for code, count in sorted(codes.items())) or "none"
    rate = f"{report['rps']:.0f} calls/s"
    percentiles = {p["percentage"]: p["latency"] / 1e6 for p in report["latencyDistribution"] or ()}
    times = ", ".join(f"p{p} {percentiles[p]:.1f} ms" for p in (50, 99) if p in percentiles)
    verdict = "ok" if sound else "FAILED"
    lines = [f"{verdict}: {calls} calls: {shown}; {rate}{times and ', '}{times}"]
    if not sound:
        errors: dict[str, int] = report.get("errorDistribution") or {}
        lines += [f"  {count} x {error}" for error, count in errors.items()]
    return "\n".join(lines), sound


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
