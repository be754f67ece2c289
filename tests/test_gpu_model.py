# SPDX-License-Identifier: Apache-2.0
"""The model of time: laws that any such model keeps, counts of known kernels, and published times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from each import BACKENDS, DEVICE

if "triton" not in BACKENDS or DEVICE != "cpu":
    pytest.skip("needs Triton, whose driver it takes over", allow_module_level=True)

import ptx_emulator
from bench.gpu import calls, facts, model, peers_model, predict, sass
from bench.gpu.cards import A100, B200, CARDS, H100
from bench.gpu.timeline import Timeline

FACTS = model.Facts(
    "some_kernel", programs=500, warps=4, registers=64, shared=4096,
    pipes={"issue": 4e6, "alu": 2e6, "fma": 1e6}, chain=(3000.0, 5000.0), longest=(4000.0, 6000.0),
    new=10_000_000, again=2_000_000, written=1_000_000, requested=20_000_000,
)  # fmt: skip


def seconds(launch, card=H100, kept=True):
    return model.launch_time(launch, card, kept).seconds


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {"new": 10**9},
        {"requested": 10**9},
        {"pipes": {"issue": 4e8, "alu": 2e6}},
        {"pipes": {"issue": 4e6, "alu": 2e8}},
        {"chain": (3e5, 5e5), "longest": (4e5, 6e5)},
        {"longest": (4e5, 6e5)},
        {"registers": 255},
        {"shared": 200 << 10},
    ],
    ids=str,
)
def test_more_of_anything_takes_no_less(more, card, kept):
    assert seconds(replace(FACTS, **more), card, kept) >= seconds(FACTS, card, kept)
    if "registers" not in more:
        assert seconds(replace(FACTS, **more), card, kept) > seconds(FACTS, card, kept)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("share", [0.1, 1, 7, 40])
def test_no_roof_is_broken(card, share):
    launch = FACTS.times(share)
    least = max(
        launch.new / (card.dram * 1e9),
        launch.requested / (card.l2 * 1e9),
        launch.pipes["issue"] / (4 * card.processors * card.clock * 1e9),
        launch.pipes["alu"] / (2 * card.processors * card.clock * 1e9),
        model.latency(launch.longest, card.l2_latency) / (card.clock * 1e9),
    )
    assert seconds(launch, card) > model.GAP + least


def test_one_program_more_than_the_processors_hold_makes_a_wave():
    held = model.resident(FACTS, H100) * H100.processors
    full, over = replace(FACTS, programs=held), replace(FACTS, programs=held + 1)
    wave = model.latency(FACTS.chain, 263) + model.START
    latency = [
        model.launch_time(launch, replace(H100, dram_latency=263), True).parts["latency"]
        for launch in (full, over)
    ]
    assert latency[1] - latency[0] == pytest.approx(H100.seconds(wave))


def test_programs_that_a_processor_holds():
    assert model.resident(replace(FACTS, registers=32, shared=0), H100) == 16  # by warps
    assert model.resident(replace(FACTS, registers=168, shared=0), H100) == 3  # by registers
    assert model.resident(replace(FACTS, registers=32, shared=100 << 10), H100) == 2  # by shared memory
    assert model.resident(replace(FACTS, registers=32, shared=100 << 10), A100) == 1
    assert model.resident(replace(FACTS, warps=1, registers=32, shared=0), H100) == 32  # by blocks


def test_what_fits_in_the_cache_is_read_from_dram_once():
    small, large = FACTS, replace(FACTS, new=30_000_000)
    again = replace(FACTS, new=0, again=10_000_000)
    kept, reread = (
        [time.parts["dram"] for time in model.operation_times([f, again], H100)] for f in (small, large)
    )
    assert kept[1] == 0 and reread[1] > 0


DEPENDENT = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry chase(.param .u64 .ptr .global a) .reqntid 64
{
    .reg .b64 %rd<6>;
    .reg .b32 %r<4>;
    .reg .pred %p<2>;
    ld.param.b64 %rd1, [a];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 16;
    add.s64 %rd3, %rd1, %rd2;
    mov.b32 %r2, LOADS;
again:
    ld.global.v2.b64 {%rd4, %rd5}, [%rd3];
    add.s64 %rd3, %rd3, %rd4;
    add.s32 %r2, %r2, -1;
    setp.ne.s32 %p1, %r2, 0;
    @%p1 bra again;
    st.global.b64 [%rd3], %rd4;
    ret;
}
"""


def chased(loads: int, dependent: bool = True):
    """A launch of two programs of two warps, that loads so many times in a row."""
    text = DEPENDENT.replace("LOADS", str(loads))
    if not dependent:  # the next address does not come from what was loaded
        text = text.replace("add.s64 %rd3, %rd3, %rd4;", "add.s64 %rd3, %rd3, 0;")
    memory = torch.zeros(128, dtype=torch.int64)
    with ptx_emulator.count(Timeline) as launches:
        ptx_emulator.run(text, (2, 1, 1), memory)
    return launches[0]


@pytest.mark.parametrize("loads", [1, 40])
def test_dependent_loads_wait_for_each_other(loads):
    near, far = chased(loads).tally.programs.T[0]
    assert far - near == pytest.approx(500 * loads)
    near, far = chased(loads, dependent=False).tally.programs.T[0]
    assert far - near == pytest.approx(500)


def test_scalars_are_in_the_second_level_cache():
    text = DEPENDENT.replace("LOADS", "5").replace("v2.b64 {%rd4, %rd5}", "b64 %rd4")
    with ptx_emulator.count(Timeline) as launches:
        ptx_emulator.run(text, (1, 1, 1), torch.zeros(128, dtype=torch.int64))
    near, far = launches[0].tally.programs.T[0]
    assert near == far > 5 * model.LATENCIES[0]


COPIED = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 .ptr .global a) .reqntid 32
{
    .reg .b64 %rd<6>;
    .reg .b32 %r<4>;
    .shared .align 16 .b8 room[2048];
    ld.param.b64 %rd1, [a];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 16;
    add.s64 %rd3, %rd1, %rd2;
    mov.u32 %r2, room;
    shl.b32 %r3, %r1, 4;
    add.s32 %r2, %r2, %r3;
    cp.async.cg.shared.global [%r2], [%rd3], 16;
    cp.async.commit_group;
    cp.async.wait_group FIRST;
    bar.sync 0;
    cp.async.cg.shared.global [%r2+512], [%rd3], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ret;
}
"""


@pytest.mark.parametrize("ahead, waits", [(0, 2), (1, 1)])
def test_copies_are_waited_for_where_the_kernel_waits(ahead, waits):
    memory = torch.zeros(64, dtype=torch.int64)
    with ptx_emulator.count(Timeline) as launches:
        ptx_emulator.run(COPIED.replace("FIRST", str(ahead)), (1, 1, 1), memory)
    near, far = launches[0].tally.programs.T[0]
    assert far - near == pytest.approx(500 * waits)


def test_machine_instructions_are_executed_as_often_as_their_lines():
    few, many = (sass.pipes(chased(loads), 90) for loads in (10, 20))
    assert many["memory"] > few["memory"] >= 4 * 10
    assert many["issue"] - few["issue"] >= 4 * 10 * 4
    assert few["issue"] > few["memory"]


@pytest.mark.parametrize(
    "opcode, pipe",
    [
        ("FFMA", "fma"),
        ("IMAD.WIDE", "imad"),
        ("MUFU.EX2", "special"),
        ("LDG.E", "memory"),
        ("UIADD3", "issue"),
        ("BRA", "issue"),
        ("LOP3.LUT", "alu"),
        ("DFMA", "double"),
        ("HMMA.16816.F32", "tensor"),
    ],
)
def test_pipes_of_machine_instructions(opcode, pipe):
    assert sass.pipe_of(opcode) == pipe


def test_facts_of_launches():
    memory = torch.zeros(128, dtype=torch.int64)
    text = DEPENDENT.replace("LOADS", "3")

    def call():
        for _ in range(2):
            ptx_emulator.run(text, (2, 1, 1), memory)

    first, second = facts.of_call(call, (80, 90))[90]
    assert (first.programs, first.warps, first.new, first.again) == (2, 2, 1024, 0)
    assert (second.new, second.again, second.written) == (0, 1024, 1024)
    assert first.requested == 2 * 1024 * 4  # by two programs, three loads and a store


def test_a_request_of_a_large_batch_is_counted_as_that_batch_splits_it():
    """8 heads of the cache and 256 positions: in 32 programs alone, in 8 among 64 requests. Each of the 8 is
    longer, but not 4 times: a program finds its request and loads its queries once."""
    counted = calls.AttentionCall("", 1, 256, cache_heads=8).count([90], [1, 64])[90]
    ((alone, _),), ((among, _),) = counted[1], counted[64]
    assert (alone.programs, among.programs) == (32, 64 * 8)
    assert alone.longest[0] < among.longest[0] < 3 * alone.longest[0]
    assert among.new == 64 * alone.new and among.written < 64 * alone.written


def test_published_times():
    """What docs/gpu_model.md says of the model's errors."""
    ratios = {row.name: row.ratio for row in peers_model.PUBLISHED}
    bounds = {"FlashInfer": (0.75, 1.55), "Triton top-p": (0.65, 0.8), "Triton top-k": (0.33, 0.5)}
    for name, ratio in ratios.items():
        ((low, high),) = (bound for kind, bound in bounds.items() if name.startswith(kind))
        assert low < ratio < high, name
    assert sum(0.5 <= ratio <= 2 for ratio in ratios.values()) >= 3


def test_the_page_has_the_figures_of_the_stored_facts():
    page = predict.PAGE.read_text()
    for line in [*predict.validation(), *predict.peers((H100, A100), (1, 8, 64, 256))]:
        assert line in page.splitlines(), line
    for call in calls.VERIFY + calls.ATTENTION:
        assert f"| {call.name} | H100 |" in page
    for card in CARDS:
        assert f"{card.processors}, {card.clock:g} GHz" in page
        assert f"{card.l2_latency:g}, {card.dram_latency:g} cycles" in page


@pytest.mark.slow
def test_a_call_is_counted_and_scaled():
    counted = calls.ATTENTION[-1].count((90,), (8, 64))[90]
    (small,), (large,) = counted[8][0], counted[64][0]
    assert large.programs == 8 * small.programs and large.new == 8 * small.new
    assert small.new + small.written == pytest.approx(6.3e6, rel=0.02)  # as docs/gpu_counts.md has it
    text = "\n".join(predict.table(calls.ATTENTION[-1:], (H100, B200), (8,)))
    assert "B200" in text and "(latency)" in text
