# SPDX-License-Identifier: Apache-2.0
"""What the units in conf/ allow their programs."""
import re

from labkit.assets import REPOSITORY


def capabilities(unit: str) -> str:
    """As setpriv(1) has them."""
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", (REPOSITORY / "conf" / unit).read_text(), re.MULTILINE)
    return ",".join(["-all", *("+" + name.removeprefix("CAP_").lower() for name in line.split())])
