# SPDX-License-Identifier: Apache-2.0
"""The demo's model as folders that engines load: the target, and its first layers as a draft model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from demo import files, smollm

ROOT = Path(__file__).parents[2]
DRAFT_LAYERS = 28  # of 30: often right, often wrong
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "clean_up_tokenization_spaces": False,
}


class Folders(NamedTuple):
    target: Path
    draft: Path


def folders() -> Folders:
    """Both folders, in the demo's cache; made where they are missing."""
    cache = Path(os.environ.get("SPECDEC_CACHE") or ROOT / ".cache")
    made = Folders(cache / "engines" / "target", cache / "engines" / "draft")
    if not (made.draft / "tokenizer_config.json").exists():
        loaded = smollm.load()
        tokenizer = (cache / smollm.CACHE_NAME / "tokenizer.json").read_bytes()
        for folder in made:
            if folder == made.draft:
                loaded.model.model.layers = loaded.model.model.layers[:DRAFT_LAYERS]
                loaded.model.config.num_hidden_layers = DRAFT_LAYERS
            loaded.model.save_pretrained(folder)
            (folder / "tokenizer.json").write_bytes(tokenizer)
            (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    return made


def prompts() -> dict[str, str]:
    """The demo's prompts in the model's chat form."""
    texts = files.read_prompts(files.PROMPTS)
    return {name: smollm.CHAT.format(message=text) for name, text in texts.items()}
