# SPDX-License-Identifier: Apache-2.0
"""`python -m bench pictures`: draws docs/pictures from the files in results/, for light and for dark pages.

Every picture can be read without its colours: by markers, hatches and labels beside what they name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402  once the canvas is chosen
from matplotlib.axes import Axes  # noqa: E402

from .recording import recording  # noqa: E402

FONT, FALLBACK = "DejaVu Sans", "'DejaVu Sans', Verdana, Arial, sans-serif"
RESULTS = Path(__file__).with_name("results")
MACHINE = "amd-epyc-avx-512"  # whose times are drawn


class Page(NamedTuple):
    """Colours of a page: behind all, of text, of lines in the background, of what is compared."""

    name: str
    back: str
    text: str
    faint: str
    colors: tuple[str, ...]


PAGES = (
    Page("light", "#ffffff", "#1f2328", "#6e7781", ("#0060a8", "#b34700", "#00755a", "#8a3a78", "#57606a")),
    Page("dark", "#0d1117", "#e6edf3", "#8b949e", ("#5cb8ff", "#ffa657", "#4fd1a8", "#e39bd3", "#a9b3bd")),
)
MARKERS, HATCHES = "osD^v", ("", "//", "\\\\")


def main(folder: Path) -> int:
    """Draw every picture as NAME-light.svg and NAME-dark.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        for name, (draw, size) in PICTURES.items():
            path = folder / f"{name}-{page.name}.svg"
            with matplotlib.rc_context(_style(page)):
                figure, panels = pyplot.subplots(
                    1, size[2], figsize=size[:2], layout="constrained", squeeze=False
                )
                draw(list(panels[0]), page)
                figure.savefig(path, metadata={"Date": None, "Creator": None})
                pyplot.close(figure)
            drawn = path.read_text(encoding="utf-8").replace(f"'{FONT}'", FALLBACK)
            path.write_text(re.sub(r" +$", "", drawn, flags=re.M), encoding="utf-8")
        colors = page.back, page.text, page.faint, page.colors[2]
        drawn = recording(_read("demo_steps"), "code_rename", *colors)
        (folder / f"recording-{page.name}.svg").write_text(drawn, encoding="utf-8")
    return 0


def _style(page: Page) -> dict[str, Any]:
    colored = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "hatch.color")
    behind = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return (
        dict.fromkeys(colored, page.text)
        | dict.fromkeys(behind, page.back)
        | {
            "svg.fonttype": "none",  # letters, and not their outlines
            "svg.hashsalt": "specdec_kernels",
            "font.family": FONT,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2,
            "lines.markersize": 7,
            "hatch.linewidth": 0.8,
        }
    )


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _cases(name: str, threads: int = 2) -> dict[str, dict[str, float]]:
    """Milliseconds of every case of a suite, by contender."""
    return {
        entry["name"]: timing["milliseconds"] | timing["derived"]
        for entry in _read(f"{MACHINE}/{name}")["cases"]
        for timing in entry["timings"]
        if timing["threads"] == threads
    }


def _lines(
    panel: Axes, page: Page, xs: Sequence[float], rows: dict[str, Sequence[float]], **marks: Any
) -> None:
    """A line for each row, with its name at its right end; names that would touch are moved apart."""
    ends = sorted(rows, key=lambda name: rows[name][-1])
    logarithmic = panel.get_yscale() == "log"
    for place, (name, row) in enumerate(rows.items()):
        floor = name.startswith("floor")
        panel.plot(
            xs,
            row,
            color=page.faint if floor else page.colors[place % 5],
            marker="" if floor else MARKERS[place % 5],
            linestyle="--" if floor else "-",
            **marks,
        )
    low, high = panel.get_ylim()
    scale = (
        (lambda y: math.log(y / low) / math.log(high / low))
        if logarithmic
        else (lambda y: (y - low) / (high - low))
    )
    at = -1.0
    for place, name in enumerate(ends):
        most = 1 - 0.065 * (len(ends) - 1 - place)
        at = min(max(at + 0.065, scale(rows[name][-1])), most)
        panel.annotate(
            name, (1.01, at), xycoords="axes fraction", va="center", fontsize=10, annotation_clip=False
        )


def _bars(panel: Axes, page: Page, rows: Sequence[tuple[str, float, int]], unit: str) -> None:
    """A bar for each row of name, length and group, with its length beside it."""
    for place, (_, length, group) in enumerate(rows):
        panel.barh(
            place,
            length,
            0.7,
            color=page.colors[group],
            hatch=HATCHES[group],
            edgecolor=page.text,
            linewidth=0.5,
        )
        panel.annotate(
            f"{length:.0%}"
            if unit == "%"
            else f"{length:.{0 if length >= 20 else 2 if length < 10 else 1}f}x",
            (length, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )
    panel.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    panel.invert_yaxis()


VERIFIED = {
    "match": "match",
    "token": "token",
    "traversal": "traversal",
    "best eager torch": "best eager torch",
    "transformers": "transformers",
    "floor: log-sum-exp": "floor target",
}


def verify(panels: list[Axes], page: Page) -> None:
    cases = _cases("verify")
    for panel, xs, names in (
        (panels[0], (0.3, 0.7, 0.95), [f"chain5-b8-v128256-a{a}-float32" for a in (0.3, 0.7, 0.95)]),
        (panels[1], (32000, 128256), [f"chain5-b8-v{v}-a0.7-float32" for v in (32000, 128256)]),
    ):
        panel.set_yscale("log")
        panel.set_ylim(0.2, 40)
        _lines(panel, page, xs, {name: [cases[c][key] for c in names] for name, key in VERIFIED.items()})
        panel.set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
        panel.set_yticks([], minor=True)
    panels[0].set_title(
        "ms of a call for 8 chains of 5 on two cores, float32,\nby overlap, vocabulary of 128,256"
    )
    panels[0].set_xlabel("overlap of draft and target, sum of min(p, q)")
    panels[1].set_title("The same by vocabulary, overlap 0.7\n")
    panels[1].set_xticks([32000, 128256], ["32,000", "128,256"])
    panels[1].set_xlabel("tokens of the vocabulary")
    panels[1].margins(x=0.1)


def roof(panels: list[Axes], page: Page) -> None:
    rows = []
    for overlap in (0.3, 0.7, 0.95):
        times = _cases("verify")[f"chain5-b8-v128256-a{overlap}-float32"]
        rows.append(
            (f"traversal, raw logits, overlap {overlap}", times["floor all"] / times["traversal raw"], 0)
        )
    for entry in _read(f"{MACHINE}/attention"):
        if entry["case"].startswith("decode"):
            rows.append((f"tree_attention, {entry['case']}, {entry['dtype']}", entry["ratios"]["read"], 1))
    for name, times in _cases("commit").items():
        rows.append((f"commit_kv, {name.split('-')[1]} rows", times["memcpy"] / times["commit_kv"], 2))
    _bars(panels[0], page, rows, "%")
    panels[0].axvline(1.0, color=page.faint, linestyle="--")
    panels[0].set_xlim(0, 1.12)
    panels[0].set_xticks([0, 0.5, 1], ["0", "50 %", "the floor"])
    panels[0].set_title(
        "Share of the speed of a floor, on two cores: of log-sum-exp over all rows for\n"
        "traversal, of a sum over the cache for tree_attention, of memcpy for commit_kv"
    )


def peers(panels: list[Axes], page: Page) -> None:
    cases, commit = _cases("verify"), _cases("commit")["commit-32x5-bfloat16"]
    chain, tree = cases["chain5-b8-v128256-a0.7-float32"], cases["tree64-b1-v128256-a0.7-float32"]
    cut = cases["chain5-b8-v128256-k50-p0.9-a0.7-float32"]
    attention = {(entry["case"], entry["dtype"]): entry["ratios"] for entry in _read(f"{MACHINE}/attention")}
    nodes, decode = attention["64 nodes", "fp32"], attention["decode 4096", "fp32"]
    few = attention["8 nodes", "fp32"]
    rows = [
        ("chain: torch, rows needed only", chain["torch lazy"] / chain["token"], 0),
        ("chain: torch.compile", chain["torch compiled"] / chain["token"], 0),
        ("chain: transformers", chain["transformers"] / chain["token"], 0),
        ("chain: flashspec", chain["flashspec"] / chain["token"], 0),
        ("top-k, top-p: torch.topk", cut["torch topk filter"] / cut["token"], 0),
        ("top-k, top-p: torch.sort", cut["torch sort filter"] / cut["token"], 0),
        ("tree of 64: torch, visited rows", tree["torch token, lazy"] / tree["token"], 0),
        ("tree of 64: torch, all rows", tree["torch token"] / tree["token"], 0),
        ("attention, 8 nodes: SDPA", few["sdpa"], 1),
        ("attention, 64 nodes: SDPA", nodes["sdpa"], 1),
        ("attention, 64 nodes: FlexAttention", nodes["flex"], 1),
        ("attention, decoding: SDPA", decode["sdpa"], 1),
        ("attention, decoding: gather, SDPA", decode["sdpa with gather"], 1),
        ("commit_kv: best torch", commit["best torch"] / commit["commit_kv"], 2),
    ]
    _bars(panels[0], page, rows, "x")
    panels[0].set_xscale("log")
    panels[0].set_xlim(1, 700)
    panels[0].set_xticks([1, 3, 10, 30, 100, 300], ["1x", "3x", "10x", "30x", "100x", "300x"])
    panels[0].set_xticks([], minor=True)
    panels[0].set_title(
        "Time of others in units of this package's: medians of interleaved runs on\n"
        "two cores (AMD EPYC, AVX-512), float32; commit_kv in bfloat16"
    )


def acceptance(panels: list[Axes], page: Page) -> None:
    found = _read("acceptance")
    xs = found["overlaps"]
    for panel, most in zip(panels, (15.0, 4.5, 15.0), strict=True):
        panel.set_ylim(0.8, most)
    labels = {"match": "match, likeliest", "token": "token, sampled", "traversal": "traversal, sampled"}
    by_rule = {
        shape: {labels[rule]: row for rule, row in found[shape].items()}
        for shape in ("chain of 14", "2, 2, 2")
    }
    _lines(panels[0], page, xs, by_rule["chain of 14"])
    panels[0].set_title("Chain of 14 tokens, by rule")
    _lines(panels[1], page, xs, by_rule["2, 2, 2"])
    panels[1].set_title("Tree of 14 (2, 2, 2), by rule")
    _lines(panels[2], page, xs, {k: v["traversal"] for k, v in found.items() if isinstance(v, dict)})
    panels[2].set_title("traversal, by shape of 14 tokens")
    for panel in panels:
        panel.set_xlabel("overlap of draft and target")
        panel.set_xticks([0.1, 0.5, 0.9])
    panels[0].set_ylabel("tokens of a step")


def costs(panels: list[Axes], page: Page) -> None:
    found = {int(rows): cost for rows, cost in _read("demo_steps")["costs"].items() if int(rows) <= 64}
    xs = list(found)
    rows = {"measured": list(found.values()), "floor: rows are free": [1.0] * len(xs)}
    panels[0].set_xscale("log", base=2)
    panels[0].set_ylim(0, max(found.values()) * 1.15)
    few = [x for x in xs if x <= max(found.values())]
    panels[0].plot(few, few, color=page.faint, linestyle=":")
    panels[0].annotate(
        "rows share nothing", (few[-1], few[-1]), (8, -4), textcoords="offset points", fontsize=10
    )
    _lines(panels[0], page, xs, rows)
    ticks = [1, 2, 4, 8, 16, 32, 64]
    panels[0].set_xticks(ticks, [str(tick) for tick in ticks])
    panels[0].set_xlabel("rows of a step: drafted tokens and the root")
    panels[0].set_title("Cost of a step, in steps of one row: what the tokens of a step have to exceed")


def demo(panels: list[Axes], page: Page) -> None:
    found = _read(f"{MACHINE}/demo")
    names = ["all", *found["speedups"]]
    for place, name in enumerate(names):
        speed = found["speedups"].get(name) or found["all"]["greedy"]
        rate = found["plain"].get(name) or found["all"]["greedy"]["plain"]
        for offset, way, group in ((-0.2, "tree", 1), (0.2, "learned", 0)):
            panels[0].barh(
                place + offset,
                speed[way],
                0.38,
                color=page.colors[group],
                hatch=HATCHES[group],
                edgecolor=page.text,
                linewidth=0.5,
            )
            label = f"{speed[way]:.2f}x"
            if way == "learned":
                label += f", {rate * speed[way]:.0f} tokens/s"
            if name == "all":
                label += " with lookup in the text" + " and learned n-grams" * (way == "learned")
            panels[0].annotate(
                label,
                (speed[way], place + offset),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    panels[0].axvline(1.0, color=page.text, linewidth=1.2)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    panels[0].set_xlim(0, 9.2)
    panels[0].set_xticks([0, 1, 2, 4, 6, 8], ["0", "plain\ndecoding", "2x", "4x", "6x", "8x"])
    panels[0].set_title(
        "Speed-up with the same text, greedy. SmolLM2-135M-Instruct in float32 on two\n"
        "cores (AMD EPYC, AVX-512), one text at a time, 96 tokens an answer"
    )


Draw = Callable[[list[Axes], Page], None]
PICTURES: dict[str, tuple[Draw, tuple[float, float, int]]] = {  # width, height, panels
    "verify": (verify, (11, 4.2, 2)),
    "roof": (roof, (9, 4.4, 1)),
    "peers": (peers, (9, 5, 1)),
    "acceptance": (acceptance, (12, 4, 3)),
    "costs": (costs, (8, 4, 1)),
    "demo": (demo, (8, 6, 1)),
}
