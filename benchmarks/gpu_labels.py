"""How the pages of GPU results call things."""

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
MEBI = 2**20


def video(result: Result) -> str:
    """The size of a result's video."""
    size = result["video"]
    return f"{size['height']}x{size['width']}, {size['frames']} frames"


def method(name: str, row: Result) -> str:
    """A method and its setting, if it has one."""
    return f"{name} `{row['setting']}`" if row["setting"] else name


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def mebibytes(count: float | None) -> str:
    """Bytes in MiB, tenths of them below ten."""
    if count is None:
        return "-"
    return f"{count / MEBI:,.{0 if abs(count) >= 10 * MEBI else 1}f} MiB"
