# SPDX-License-Identifier: Apache-2.0
"""What was written as strings, cut where a stop string begins."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any


def written_text(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], ends: Sequence[str]) -> str:
    """The text of tokens behind a prompt, without special tokens.

    Args:
        tokenizer: of transformers.
        prompt, tokens: of the request.
        ends: stop strings, one of which the last token completed; empty if none did. It may have begun in
            any token before, in the prompt too.
    """

    def decoded(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    whole = decoded([*prompt, *tokens])
    # A tokenizer may write a token in another way once more tokens follow.
    begin = len(commonprefix([decoded(prompt), whole]))
    known = len(commonprefix([decoded([*prompt, *tokens[:-1]]), whole]))
    places = [whole.find(string, max(known - len(string) + 1, 0)) for string in ends]
    cut = min((place for place in places if place >= 0), default=len(whole))
    return whole[begin : max(begin, cut)]
