# SPDX-License-Identifier: Apache-2.0
"""The facts of launches that `model` takes, from the emulator and from ptxas."""

from __future__ import annotations

import math
from collections.abc import Callable

import ptx_emulator
from ptx_emulator.counts import SECTOR

from . import sass
from .model import Facts
from .timeline import Timeline


def of_call(call: Callable[[], object], archs: tuple[int, ...]) -> dict[int, list[Facts]]:
    """Of the launches of a call, for each target. It runs the PTX for sm_80, which ptxas assembles for the
    others too."""
    with ptx_emulator.active(80, reach="live"), ptx_emulator.count(Timeline) as launches:
        call()
    new = _new_bytes(launches)
    return {arch: [_facts(*pair, arch) for pair in zip(launches, new, strict=True)] for arch in archs}


def _facts(launch: ptx_emulator.Launch, new: int, arch: int) -> Facts:
    sectors = sum(launch.n[f"global_{kind}_sectors"] for kind in ("ld", "st", "atom"))
    programs = launch.tally.programs
    return Facts(
        name=launch.name,
        programs=math.prod(launch.grid),
        warps=launch.num_warps,
        registers=sass.registers(launch.ptx, arch),
        shared=launch.shared,
        pipes=dict(sass.pipes(launch, arch)),
        chain=tuple(map(float, programs.mean(1))),
        longest=tuple(map(float, programs.max(1))),
        new=new,
        again=launch.n["unique_ld_bytes"] - new,
        written=launch.n["unique_st_bytes"],
        requested=SECTOR * sectors,
    )


def _new_bytes(launches: ptx_emulator.Launches) -> list[int]:
    """Bytes of the sectors that each launch reads and that none before it has read or written."""
    seen: dict[int, object] = {}
    found = []
    for launch in launches:
        new = 0
        for kind in ("ld", "st"):
            touched = launch.tally.touched[kind]
            for page, row in zip(touched.pages.tolist(), touched.rows.tolist(), strict=True):
                flags = touched.flags[row]
                if page in seen:
                    new += (kind == "ld") * int((flags & ~seen[page]).sum())
                    seen[page] = seen[page] | flags
                else:
                    new += (kind == "ld") * int(flags.sum())
                    seen[page] = flags.copy()
        found.append(SECTOR * new)
    return found
