"""One self-contained page, and one JSON file, on all finished runs."""

from __future__ import annotations

import base64
import html
import io
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import grid_figures as figures
from .collect import Arm, Run, by_dataset, shared_settings, spread, summary
from .environment import environment
from .figures import NAMES
from .published import QUOTES
from .run_folder import atomically, write_json

Maps = Mapping[Path, dict[str, np.ndarray]]  # by the folders of the runs that they are of

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 1080px;
       margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 3rem; border-bottom: 2px solid #0072B2; }
h3 { margin: 2rem 0 .4rem; } nav a { margin-right: 1.2rem; } a { color: #0072B2; }
p.note, figcaption { color: #57606a; font-size: .9rem; } p.warning { color: #8a3b00; font-weight: 600; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid #e2e5e9; text-align: right; }
td { white-space: nowrap; } td.text { white-space: normal; } th.text, td.text { text-align: left; }
tr.quote td { color: #57606a; font-style: italic; }
thead th { border-bottom: 2px solid #9aa4ae; }
.scroll { overflow-x: auto; } figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; }
details { margin: .4rem 0; } summary { cursor: pointer; } code { font-size: .88em; }
"""


def write(runs: Sequence[Run], maps: Maps, output: Path, planned: int | None = None) -> None:
    """Writes report.html and results.json into `output`; `planned`: how many runs there are to be in the end."""
    groups = by_dataset(runs)
    made = {"date": time.strftime("%Y-%m-%d %H:%M"), "runs": len(runs), "planned": planned, **environment()}
    write_json(
        output / "results.json",
        {
            "made": made,
            "datasets": [
                {
                    "dataset": dataset,
                    "encoder": encoder,
                    "arms": [summary(arm) for arm in arms],
                    "quoted": [asdict(quote) for quote in QUOTES.get(dataset, ())],
                }
                for (dataset, encoder), arms in groups.items()
            ],
        },
    )
    page = "\n".join(_page(groups, maps, made))
    atomically(output / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def _page(groups: Mapping[tuple[str, str], list[Arm]], maps: Maps, made: Mapping[str, Any]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>SPCL: reproduction</title>'
    yield f"<style>{STYLE}</style>"
    yield "<h1>Emotion recognition in conversation with SPCL</h1>"
    done = f"Finished runs: {made['runs']}" + (f" of {made['planned']}" if made["planned"] else "")
    yield (
        f'<p class="note">{done}; report of {made["date"]}. Scores are weighted-F1 in percent. The epoch is chosen '
        "by the dev set, by the head that the objective trains; the test set is scored once, with that epoch's "
        "weights. Deviations are sample standard deviations over seeds.</p>"
    )
    if made["planned"] and made["runs"] < made["planned"]:
        yield '<p class="warning">The grid is not finished: what is missing is not in the means.</p>'
    links = (f'<a href="#{_anchor(*key)}">{html.escape(" · ".join(key))}</a>' for key in groups)
    yield f"<nav>{''.join(links)}</nav>"
    yield "<h2>At a glance</h2>"
    yield "<p>Test weighted-F1 of the head that dev selects by, and in brackets that of the seed that dev prefers.</p>"
    for encoder in dict.fromkeys(encoder for _, encoder in groups):
        yield _glance(encoder, {dataset: arms for (dataset, own), arms in groups.items() if own == encoder})
    for key, arms in groups.items():
        yield from _section(key, arms, maps)
    yield "<h2>On what this was made</h2>"
    rows = [("this report", str(made))]
    runs = [run for arms in groups.values() for arm in arms for run in arm.runs]
    rows += [("runs", text) for text in sorted(set(map(_environment, runs)))]
    yield _table(("of", "environment"), rows)
    yield "</html>"


def _environment(run: Run) -> str:
    return str(run.result.get("environment", "not recorded"))


def _glance(encoder: str, datasets: Mapping[str, Sequence[Arm]]) -> str:
    """Arms by datasets, and below them what others report."""
    rows: dict[str, dict[str, str]] = {}
    for dataset, arms in datasets.items():
        for arm in arms:
            scores = [100 * score for score in arm.scores("test", arm.head, "weighted_f1")]
            best = 100 * arm.best.result["test"][arm.head]["weighted_f1"]
            rows.setdefault(arm.label, {})[dataset] = _spread(scores) + (f" ({best:.2f})" if len(scores) > 1 else "")
    quoted: dict[str, dict[str, str]] = {}
    for dataset in datasets:
        for quote in QUOTES.get(dataset, ()):
            quoted.setdefault(f"{quote.method} ({quote.encoder})", {})[dataset] = f"{quote.weighted_f1:.2f}"
    table = [(name, *(cells.get(dataset, "") for dataset in datasets)) for name, cells in (rows | quoted).items()]
    return _table((encoder, *datasets), table, text={0}, quotes=len(quoted))


def _section(key: tuple[str, str], arms: list[Arm], maps: Maps) -> Iterator[str]:
    dataset, encoder = key
    classes = list(arms[0].class_scores(arms[0].head))
    yield f'<h2 id="{_anchor(*key)}">{html.escape(dataset)} <small>with {html.escape(encoder)}</small></h2>'
    if any(arm.settings.limit for arm in arms):
        yield '<p class="warning">Some of these runs saw only part of the dataset: no scores of it.</p>'
    if any(arm.settings.future_turns for arm in arms):
        yield '<p class="warning">Arms with future turns are not causal: the paper\'s setting sees the past only.</p>'
    yield _scores(arms)
    if quotes := QUOTES.get(dataset, ()):
        yield "<h3>What others report</h3>"
        rows = [(quote.method, quote.encoder, f"{quote.weighted_f1:.2f}", quote.source) for quote in quotes]
        yield _table(("method", "encoder", "test weighted-F1", "source"), rows, text={0, 1, 3})
    yield _figure("Test scores", figures.ranking(arms, quotes), "Each dot is a seed.")
    caption = "Dev, after each epoch. A curriculum's epoch holds half of the data."
    if len(arms) > len(figures.STRONG):
        caption += f" The {len(figures.STRONG)} arms that are best on dev."
    yield _figure("Curves", figures.curves(arms), caption)
    yield _figure("F1 by class", figures.class_scores(arms, classes), "Test, mean over seeds.")
    shown = representatives(arms)
    yield _figure("Confusion", figures.confusions(shown, classes), "Test, seeds added up.")
    drawn = [(arm.label, maps[arm.best.path]) for arm in shown if arm.best.path in maps]
    if drawn:
        caption = "t-SNE of test utterances by the cosine of their representations."
        yield _figure("Representations", figures.maps(drawn, classes), caption)
    caption = "Cosine of the classes' prototypes, the means of what the memory holds: the lower, the further apart."
    yield _figure("Prototypes", figures.cosines(shown, classes), caption)
    for setting, across, members in sweeps(arms):
        title = f"{setting.replace('_', ' ').capitalize()}"
        yield _figure(title, figures.sweep(members, setting, across), "No curriculum, all data.")
    yield "<h3>Settings</h3>"
    for arm in arms:
        text = ", ".join(f"{name} {value}" for name, value in shared_settings(arm).items())
        yield f"<details><summary>{html.escape(arm.label)}</summary><code>{html.escape(text)}</code></details>"


def _scores(arms: Sequence[Arm]) -> str:
    def percent(arm: Arm, split: str, head: str, metric: str) -> str:
        return _spread([100 * score for score in arm.scores(split, head, metric)])

    rows = []
    for arm in arms:
        best = arm.best
        other = next(head for head in NAMES if head != arm.head)
        rows.append(
            (
                arm.label,
                f"{len(arm.runs)}",
                percent(arm, "dev", arm.head, "weighted_f1"),
                percent(arm, "test", arm.head, "weighted_f1"),
                f"{100 * best.result['test'][arm.head]['weighted_f1']:.2f} ({best.settings.seed})",
                percent(arm, "test", arm.head, "macro_f1"),
                percent(arm, "test", arm.head, "accuracy"),
                NAMES[arm.head],
                percent(arm, "test", other, "weighted_f1"),
                f"{statistics.fmean(arm.seconds_per_epoch()):.0f}",
            )
        )
    head = (
        "arm", "seeds", "dev", "test", "test, best seed by dev", "test macro-F1", "test accuracy", "head",
        "test, other head", "seconds an epoch",
    )  # fmt: skip
    return _table(head, rows, text={0, 7}, bold={3})


def _spread(values: Sequence[float]) -> str:
    parts = spread(values)
    return f"{parts['mean']:.2f}" + (f" ± {parts['sd']:.2f}" if parts["sd"] is not None else "")


def representatives(arms: Sequence[Arm]) -> list[Arm]:
    """The best cross-entropy arm on dev and the best SPCL arm, or the best of all where there is neither."""
    best = [next((arm for arm in arms if arm.settings.objective == name), None) for name in ("ce", "spcl")]
    return [arm for arm in best if arm is not None] or [arms[0]]


def sweeps(arms: Sequence[Arm]) -> Iterator[tuple[str, str, list[Arm]]]:
    """The arms that differ in one numeric setting, and in one other for the lines of the figure."""
    for setting, across, objectives in (
        ("batch_size", "objective", ("spcl", "supcon")),
        ("queue_size", "support_size", ("spcl",)),
        ("support_size", "queue_size", ("spcl",)),
    ):
        families: dict[str, list[Arm]] = {}
        for arm in arms:
            if arm.settings.objective in objectives and arm.settings.curriculum == "all":
                values = asdict(arm.settings)
                rest = {name: value for name, value in values.items() if name not in ("seed", setting, across)}
                families.setdefault(repr(rest), []).append(arm)
        for members in families.values():
            if len({getattr(arm.settings, setting) for arm in members}) > 1:
                yield setting, across, members


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: Collection[int] = (0, 1),
    bold: Collection[int] = (),
    quotes: int = 0,
) -> str:
    """`text`, `bold`: columns; `quotes`: how many of the last rows are not ours."""

    def line(tag: str, cells: Sequence[str]) -> str:
        parts = [f"<b>{html.escape(cell)}</b>" if i in bold else html.escape(cell) for i, cell in enumerate(cells)]
        classes = [' class="text"' if i in text else "" for i in range(len(cells))]
        return "".join(f"<{tag}{c}>{part}</{tag}>" for c, part in zip(classes, parts, strict=True))

    ours = len(rows) - quotes
    styles = [""] * ours + [' class="quote"'] * quotes
    body = "".join(f"<tr{style}>{line('td', row)}</tr>" for style, row in zip(styles, rows, strict=True))
    top = f"<thead><tr>{line('th', head)}</tr></thead>"
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _figure(title: str, figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    width = round(figure.get_size_inches()[0] * 96)
    picture = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<h3>{html.escape(title)}</h3><figure>"
        f'<img width="{width}" alt="{html.escape(title)}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _anchor(dataset: str, encoder: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in f"{dataset}-{encoder}".lower())
