"""Programs of checks that a test starts as processes of their own: devices are counted when a framework starts."""

import json
import sys
import traceback
from collections.abc import Callable, Mapping


def report(checks: Mapping[str, Callable[[], object]]) -> None:
    """Run the checks, or those with a word of the command line in their names; print by name how each failed, JSON."""
    wanted, failed = sys.argv[1:], {}
    for name, check in checks.items():
        if wanted and not any(word in name for word in wanted):
            continue
        try:
            check()
            failed[name] = ""
        except Exception:
            failed[name] = traceback.format_exc()
    print(json.dumps(failed))
