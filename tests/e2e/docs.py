"""The commands of the documentation, as somebody who follows it types them."""

import re

from tests.e2e.environment import REPOSITORY

_FENCE = re.compile(r"^```shell\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str, heading: str) -> str:
    """Return the shell commands beneath a heading of a page, in their order. Fails where there are none."""
    return "".join(blocks(page, heading))


def blocks(page: str, heading: str) -> list[str]:
    """Return the blocks of shell commands beneath a heading of a page. Fails where there are none."""
    text = (REPOSITORY / page).read_text()
    (section,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    found: list[str] = _FENCE.findall(section)
    assert found, f"{page} has no commands beneath {heading}"
    return found
