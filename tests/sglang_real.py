# SPDX-License-Identifier: Apache-2.0
"""The plugin in SGLang's own Python code: `make test-sglang`, in an environment without a GPU.

Packages of CUDA binaries are not there. In their places stand modules whose functions raise, so that SGLang
can be imported. What runs is SGLang's: the search for plugins by their metadata, the registry of hooks, the
classes of inputs, and its Triton kernels that build and verify trees, which Triton's interpreter runs.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from importlib.metadata import version
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "1"

import sglang_stand_in as stand_in
import torch
import transformers.image_utils  # noqa: F401 (asks for torchvision, before something stands in its place)

from specdec_kernels.integrations import sglang as plugin

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


def eagle_trees(generator, batch: int, topk: int, steps: int, nodes: int, vocab: int):
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


def ngram_trees(generator, batch: int, nodes: int, vocab: int):
    """Random trees of which some slots are unused, by the masks of SGLang's ngram drafter, as its class."""
    import numpy as np
    from sglang.srt.speculative.ngram_info import NgramVerifyInput
    from sglang.srt.speculative.ngram_worker import _derive_tree_links

    mask = np.broadcast_to(np.eye(nodes, dtype=bool), (batch, nodes, nodes)).copy()
    tokens = torch.randint(vocab, (batch, nodes), generator=generator)
    for b in range(batch):
        used = int(torch.randint(1, nodes + 1, (), generator=generator))
        tokens[b, used:] = 0
        for node in range(1, used):
            mask[b, node] |= mask[b, int(torch.randint(node, (), generator=generator))]
    first, after = _derive_tree_links(mask, batch, nodes)
    return NgramVerifyInput(
        draft_token=tokens.flatten(),
        custom_mask=torch.from_numpy(mask).flatten(),
        positions=None,
        retrieve_index=torch.arange(batch * nodes).view(batch, nodes),
        retrieve_next_token=first,
        retrieve_next_sibling=after,
        draft_token_num=nodes,
    ), torch.arange(5, 5 + batch)


def check(eagle_sample, tree, lens, vocab: int, generator) -> int:
    """Greedy results equal those of SGLang's own kernel. Returns the most tokens of a step."""
    from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_triton

    batch, nodes = tree.retrieve_index.shape
    logits = torch.randn(batch * nodes, vocab, generator=generator)
    predict, index, count = (
        torch.zeros(batch * nodes, dtype=torch.int32),
        torch.full((batch, tree.max_tree_depth), -1, dtype=torch.int32),
        torch.empty(batch, dtype=torch.int32),
    )
    verify_tree_greedy_triton(
        predict, index, count, tree.draft_token.view(batch, nodes), tree.retrieve_index,
        tree.retrieve_next_token, tree.retrieve_next_sibling, logits.argmax(-1).view(batch, nodes),
    )  # fmt: skip
    info = stand_in.sampling_info(batch, top_ks=torch.ones(batch, dtype=torch.int32))
    got = eagle_sample(tree, stand_in.schedule_batch(info, lens), stand_in.logits_output(logits))
    for value, expected in zip(got, (predict, count + 1, index), strict=True):
        assert torch.equal(value, expected) and value.dtype == expected.dtype
    return int(count.max()) + 1


def main() -> None:
    own, kept = load("0")
    assert own is kept, "installing the package changed SGLang"
    own, replaced = load("1")
    assert own is not replaced and plugin._active.own is own
    plugin._active.engine.get_spec = stand_in.spec  # else the arguments of a server that runs
    generator, most = torch.Generator().manual_seed(0), []
    for sizes in [(3, 1, 4, 5, 2), (2, 4, 3, 12, 3), (3, 8, 5, 40, 4)]:
        most.append(check(replaced, *eagle_trees(generator, *sizes), sizes[-1], generator))
    for sizes in [(3, 8, 2), (4, 30, 3)]:
        most.append(check(replaced, *ngram_trees(generator, *sizes), sizes[-1], generator))
    assert max(most) > 3 and plugin.statistics() == (len(most), {})
    print(f"SGLang {version('sglang')}, torch {version('torch')}, Triton {version('triton')}")
    print("without SPECDEC_SGLANG=1: SGLang is unchanged")
    print("with it: found by its metadata, called by the workers of EAGLE and ngram")
    print(
        f"{len(most)} batches of SGLang's trees: equal to SGLang's kernel, up to {max(most)} tokens in a step"
    )


if __name__ == "__main__":
    main()
