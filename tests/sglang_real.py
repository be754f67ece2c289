# SPDX-License-Identifier: Apache-2.0
"""The plugin in SGLang's own Python code: `make test-sglang`, in an environment without a GPU.

Packages of CUDA binaries are not there. In their places stand modules whose functions raise, so that SGLang can
be imported. What runs is SGLang's: the search for plugins by their metadata, the registry of hooks, the classes
of inputs, and its Triton kernels that build and verify trees, which Triton's interpreter runs.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "1"

import sglang_stand_in as stand_in
import torch
import transformers.image_utils  # noqa: F401 (asks for torchvision, before something stands in its place)

BINARY = {"decord", "flashinfer", "sgl_kernel", "torchaudio", "torchcodec", "torchvision"}


class Absent:
    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *args):
        if args and callable(args[0]):
            return args[0]  # a decorator
        raise RuntimeError(f"{self.__name__} is not there")

    def __mro_entries__(self, bases):
        return (object,)


class AbsentModule(ModuleType):
    __getattr__ = Absent.__getattr__


class AbsentPackages:
    """A finder and loader of BINARY."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in BINARY:
            return importlib.machinery.ModuleSpec(name, AbsentPackages, is_package=True)

    @staticmethod
    def create_module(spec):
        return AbsentModule(spec.name)

    @staticmethod
    def exec_module(module):
        pass


sys.meta_path.insert(0, AbsentPackages)


def load(switch: str):
    """SGLang as one of its processes begins. Returns its own function, and that which workers call."""
    os.environ["SPECDEC_SGLANG"] = switch
    from sglang.srt import plugins
    from sglang.srt.speculative import eagle_utils, eagle_worker_common, ngram_worker

    own = eagle_utils.eagle_sample
    plugins._plugins_loaded = False
    plugins.load_plugins()
    assert eagle_utils.eagle_sample is eagle_worker_common.eagle_sample is ngram_worker.eagle_sample
    return own, eagle_utils.eagle_sample


def trees(generator, batch: int, topk: int, steps: int, nodes: int, vocab: int):
    """Random trees that SGLang's kernel builds of what its drafter returns, as its `EagleVerifyInput`."""
    from sglang.kernels.ops.speculative.spec_tree import TreeMaskMode, sgl_build_tree_kernel_triton
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
    from sglang.srt.speculative.eagle_info import EagleVerifyInput
    from sglang.srt.speculative.eagle_utils import organize_draft_results

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(vocab, (batch, count), generator=generator)

    scores, drafted, parents = [], [], []
    best = torch.rand(batch, 1, topk, generator=generator)
    for step in range(steps):
        if step == 0:
            scores.append(best)
            drafted.append(tokens(topk))
            parents.append(torch.arange(-1, topk).repeat(batch, 1))
        else:
            expanded = best.transpose(1, 2) * torch.rand(batch, topk, topk, generator=generator)
            chosen = torch.topk(expanded.flatten(1), topk)
            scores.append(expanded)
            drafted.append(tokens(topk * topk))
            parents.append(chosen.indices + (topk * topk * (step - 1) + topk))
            best = chosen.values.unsqueeze(1)
    parent_list, index, draft = organize_draft_results(scores, drafted, parents, nodes)
    lens = torch.arange(5, 5 + batch)
    parts = [torch.full((batch, nodes), -1) for _ in range(3)]
    positions = torch.empty(batch * nodes, dtype=torch.int64)
    mask = torch.full((batch * nodes * nodes,), True)
    sgl_build_tree_kernel_triton(
        parent_list, index, lens, mask, positions, *parts, topk, steps, nodes, TreeMaskMode.QLEN_ONLY
    )
    return EagleVerifyInput(
        draft_token=torch.cat((tokens(1), draft), 1).flatten(),
        custom_mask=mask,
        positions=positions,
        retrieve_index=parts[0],
        retrieve_next_token=parts[1],
        retrieve_next_sibling=parts[2],
        retrieve_cum_len=None,
        spec_steps=steps,
        topk=topk,
        draft_token_num=nodes,
        capture_hidden_mode=CaptureHiddenMode.FULL,
        seq_lens_sum=int(lens.sum()),
        seq_lens_cpu=lens,
    ), lens


def check_greedy(eagle_sample) -> int:
    """On SGLang's trees, the results of its own kernel."""
    from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_triton

    generator = torch.Generator().manual_seed(0)
    longest = 0
    for batch, topk, steps, nodes, vocab in [(3, 1, 4, 5, 2), (2, 4, 3, 12, 3), (3, 8, 5, 40, 4)]:
        tree, lens = trees(generator, batch, topk, steps, nodes, vocab)
        logits = torch.randn(batch * nodes, vocab, generator=generator)
        expected = (
            torch.zeros(batch * nodes, dtype=torch.int32),
            torch.full((batch, steps + 1), -1, dtype=torch.int32),
            torch.empty(batch, dtype=torch.int32),
        )
        verify_tree_greedy_triton(
            *expected,
            tree.draft_token.view(batch, nodes),
            tree.retrieve_index,
            tree.retrieve_next_token,
            tree.retrieve_next_sibling,
            logits.argmax(-1).view(batch, nodes),
        )
        info = stand_in.sampling_info(batch, top_ks=torch.ones(batch, dtype=torch.int32))
        got = eagle_sample(tree, stand_in.schedule_batch(info, lens), stand_in.logits_output(logits))
        assert torch.equal(got[0], expected[0]) and torch.equal(got[2], expected[1])
        assert torch.equal(got[1], expected[2] + 1)
        longest = max(longest, int(got[1].max()))
    return longest


def main() -> None:
    from importlib.metadata import version

    own, kept = load("0")
    assert own is kept, "installing the package changed SGLang"
    own, replaced = load("1")
    from specdec_kernels.integrations import sglang as plugin

    assert own is not replaced and plugin._active.own is own
    plugin._active.engine.get_spec = stand_in.spec  # else the arguments of a server that runs
    longest = check_greedy(replaced)
    assert longest > 2 and plugin.statistics() == (3, {})
    print(
        f"SGLang {version('sglang')}: found by its metadata, workers call it, equal to SGLang's kernels on its"
    )
    print(f"trees, up to {longest} tokens in a step; without SPECDEC_SGLANG=1 nothing changed")


if __name__ == "__main__":
    main()
