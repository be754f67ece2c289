# SPDX-License-Identifier: Apache-2.0
"""Text on a terminal: answers as they are written, and the lines around them."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ..engine import Progress
from ..ways import DRAFTERS

ACCEPTED = "bold green"
SHOWN = DRAFTERS[-1]  # the way whose text is shown


def lines(console: Console, *texts: str | Text) -> None:
    """Each on a line of its own, however long."""
    for text in texts:
        console.print(text, soft_wrap=True)


class Answer:
    """Prints steps as text, accepted tokens in colour. A character split between tokens waits for its end."""

    def __init__(self, console: Console, tokenizer: Tokenizer):
        self.console = console
        self.tokenizer = tokenizer
        self.decoder = DecodeStream(skip_special_tokens=True)

    def __call__(self, way: str, step: list[Progress]) -> None:
        if way != SHOWN:
            return
        for progress in step:
            for place, token in enumerate(progress.tokens):
                piece = self.decoder.step(self.tokenizer, token)
                if piece:
                    style = ACCEPTED if place < len(progress.tokens) - 1 else ""
                    self.console.print(Text(piece, style), end="", soft_wrap=True)
            if not progress.request.pages:  # it has left
                self.console.print()


def texts(tokenizer: Tokenizer, steps: list[list[int]]) -> list[list[str]]:
    """The text of every token of an answer, by steps."""
    decoder = DecodeStream(skip_special_tokens=True)
    return [[decoder.step(tokenizer, token) or "" for token in step] for step in steps]
