# SPDX-License-Identifier: Apache-2.0
"""A recorded answer of the demo as SVG: a line for each step, which appear one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

LINES, COLUMNS = 16, 74
SIZE, HEIGHT, WIDTH = 14, 21, 8.43  # of a letter; of a line; of a column


def recording(found: dict[str, Any], name: str, back: str, text: str, faint: str, accent: str) -> str:
    """The first steps of an answer; accepted tokens are bold, underlined and in the accent's colour."""
    steps = found["steps"][name]
    written = 0
    lines = [
        '<tspan class="n">$ make demo</tspan>',
        f"{found['model']}; prompt {name}, greedy",
        "",
        "step  tokens  what the step writes",
    ]
    for number, pieces in enumerate(steps[:LINES], 1):
        written += len(pieces)
        lines.append(f"{number:4}  {written:6}  {_written(pieces)}")
    tokens = sum(map(len, steps))
    lines += [
        "",
        '<tspan class="a">accepted drafts</tspan>, <tspan class="n">and the token after them</tspan>',
        f"The answer has {tokens} tokens in {len(steps)} steps; plain decoding takes {tokens} steps.",
    ]
    width, height = round(COLUMNS * WIDTH) + 32, len(lines) * HEIGHT + 28
    body = "\n".join(
        f'<text class="l" x="16" y="{28 + place * HEIGHT}" style="animation-delay:{max(place - 3, 0) / 2}s">'
        f"{line}</text>"
        for place, line in enumerate(lines)
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">
<title>The demo step by step: {tokens} tokens in {len(steps)} steps</title>
<style>
text {{ font: {SIZE}px 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: {faint}; white-space: pre; }}
.a {{ fill: {accent}; font-weight: bold; text-decoration: underline; }}
.n {{ fill: {text}; }}
@media (prefers-reduced-motion: no-preference) {{ .l {{ animation: come 0.3s backwards; }} }}
@keyframes come {{ from {{ opacity: 0; }} }}
</style>
<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="8" fill="{back}" stroke="{faint}"/>
{body}
</svg>
"""


def _written(pieces: Sequence[str]) -> str:
    """All but the last token were drafted."""
    *accepted, last = (piece.replace("\n", "⏎") for piece in pieces)
    drafted = f'<tspan class="a">{escape("".join(accepted))}</tspan>' if accepted else ""
    return f'{drafted}<tspan class="n">{escape(last)}</tspan>'
