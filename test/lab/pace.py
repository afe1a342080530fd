# SPDX-License-Identifier: Apache-2.0
"""How fast this machine is. EC_SLOW=N: the tests' rates are an Nth, and they are N times as patient. Whether something came late is then
no question any more; whether it came, and how, is."""
import os

SLOW = float(os.environ.get("EC_SLOW", "1"))


def patience(seconds: float) -> float:
    """How long to wait for what must come, or for what must not."""
    return seconds * SLOW


def rate(per_second: float) -> float:
    return per_second / SLOW
