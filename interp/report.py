"""One model, its analyses, one page: the only place where analyses and plots meet."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.analysis import (
    Result,
    attention_pattern,
    head_scores,
    loss_by_position,
    repeated_sequence_loss,
)
from interp.analysis.probes.probe import probe_for
from interp.analysis.probes.sequences import RepeatedTokens, copy_length
from interp.models.shapes import Tokens
from interp.results.result import reading
from interp.views import View, load, view

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS = 24
"""More heads than this make a table that nobody reads; the page shows them all."""


@dataclass(frozen=True)
class Report:
    """What was measured, and the page that shows it.

    Attributes:
        model: the model's name.
        scores: `head_scores` of every head.
        repeated: `repeated_sequence_loss`.
        loss: `loss_by_position` on the same repeated random tokens.
        path: the page.
    """

    model: str
    scores: Result
    repeated: Result
    loss: Result
    path: Path

    @property
    def best_head(self) -> str:
        """The head with the highest induction score."""
        return self.scores.sel(score="induction").best()

    def sentence(self) -> str:
        """What was found, in words and numbers."""
        best = self.scores.sel(score="induction", head=self.best_head)
        chance = np.asarray(best.chance).item()
        drop = self.repeated.sel(measure="drop")
        accuracy = self.repeated.sel(measure="second_copy_accuracy")
        verdict = (
            f"{self.best_head} copies from context best, with an induction score of"
            if float(best) > 3 * chance
            else f"No head copies from context; {self.best_head} has the highest induction score,"
        )
        return (
            f"{verdict} {reading(best)} (uniform attention: {chance:.3f}). The second copy of "
            f"random tokens costs {reading(drop)} nats less than the first; "
            f"{100 * float(accuracy):.1f} % of its tokens are the model's first guess."
        )

    def __rich__(self) -> "RenderableType":
        """The scores as a table, for `rich.print`."""
        from rich.console import Group
        from rich.table import Table

        heads = self.scores.labels["head"]
        induction = self.scores.sel(score="induction").values
        shown = heads
        if len(heads) > ROWS:
            shown = [heads[index] for index in sorted(np.argsort(-induction)[:ROWS])]
        title = f"Attention of each head on repeated random tokens: {self.model}"
        if len(shown) < len(heads):
            title += f" (the {len(shown)} with the highest induction score, of {len(heads)})"
        table = Table(title=title)
        table.add_column("head")
        kinds = [str(kind) for kind in self.scores.labels["score"]]
        for kind in kinds:
            table.add_column(kind.replace("_", " "), justify="right", no_wrap=True)
        for head in shown:
            cells = [_cell(self.scores.sel(score=kind, head=head)) for kind in kinds]
            table.add_row(str(head), *cells, style="bold" if head == self.best_head else "")
        table.add_section()
        chance = [np.asarray(self.scores.sel(score=k, head=shown[0]).chance).item() for k in kinds]
        table.add_row("chance", *(f"{level:.3f}" for level in chance), style="dim")
        return Group(table, self.sentence())


def write_report(
    model: Any,
    path: str | os.PathLike[str] = "report.html",
    *,
    n_sequences: int = 50,
    seed: int = 0,
) -> Report:
    """Score a model's heads on repeated random tokens and write an interactive page.

    The page is one file and asks nothing of the network.

    Args:
        model: one of ours, a `TransformerBridge`, or anything that `interp.load` takes.
        path: the page to write.
        n_sequences: sequences to average over.
        seed: of the random tokens.

    Returns:
        The numbers and the path; `rich.print(found)` shows a table.

    Raises:
        FileNotFoundError: there is no such model, or no directory to write the page to.
        ValueError: a bidirectional model, which predicts no next token.
        IsADirectoryError: the page would take the place of a directory.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"{path}: there is no directory {path.parent} to write the page to; make it first"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give the name of a file to write in it")
    model = load(str(model)) if isinstance(model, str | Path) else model
    viewed = view(model)
    viewed.check_predicts_next("loss for the page")
    n = copy_length(viewed.n_ctx)
    probe = probe_for(viewed, n, n_sequences, seed)
    found = Report(
        model=viewed.name,
        scores=head_scores(model, n=n, n_sequences=n_sequences, seed=seed),
        repeated=repeated_sequence_loss(model, n=n, n_sequences=n_sequences, seed=seed),
        loss=loss_by_position(model, probe.tokens),
        path=path,
    )
    _write(found, viewed, probe)
    return found


def _write(found: Report, viewed: View, probe: RepeatedTokens) -> None:
    from interp.plots.page import Section, write_page

    layer = int(found.best_head[1:].split("H")[0])
    pattern = attention_pattern(viewed.model, _short_sequence(probe), layer)
    # The view opens on the first head it is given: the one that the page is about.
    heads = sorted(pattern.labels["head"], key=lambda head: head != found.best_head)
    sections = [
        Section(
            "What each head does",
            f"Every head, on {found.scores.provenance['n_sequences']} sequences of BOS and twice "
            f"{probe.n} random tokens. Induction: attention from a token of the second copy to the "
            "token that followed it in the first. Previous token: to the token before. Duplicate "
            "token: to the same token in the first copy. First token: to position 0, where a head "
            "rests that has nothing to do.",
            [found.scores.plot()],
        ),
        Section(
            "What it does for the predictions",
            "Random tokens cannot be predicted, but their repetition can. A model with induction "
            "heads pays less for the second copy than for the first. "
            + _why_so_much(found, viewed),
            [found.loss.plot(), found.repeated.plot()],
        ),
        Section(
            "One sequence",
            f"The attention of layer {layer}, which holds the best head, on one short sequence: "
            "BOS and twice the same tokens. Choose a head, then hover over a token to see where "
            "it looks.",
            [pattern.sel(head=heads).plot()],
        ),
        Section("The numbers", "", [found.scores, found.repeated]),
    ]
    write_page(found.path, f"{found.model}: what its heads copy", sections, lead=found.sentence())


def _why_so_much(found: Report, viewed: View) -> str:
    first, chance = float(found.repeated.sel(measure="first_copy_loss")), math.log(viewed.d_vocab)
    uniform = f"Uniform guesses would cost ln({viewed.d_vocab:,}) = {chance:.2f} nats"
    if first < chance + 0.01:
        return f"{uniform}; the first copy costs {first:.2f}."
    return (
        f"{uniform}, and the first copy costs {first:.2f}: a model trained on text expects text, "
        "and gives what comes instead far too little probability. So both copies can cost more "
        "than uniform guesses, and it is the drop from one to the other that counts."
    )


def _short_sequence(probe: RepeatedTokens) -> Tokens:
    """BOS and twice the first few random tokens: as much as one can read in a picture."""
    copy = list(probe.positions(0))[:20]
    return probe.tokens[:1, [*range(probe.start), *copy, *copy]]


def _cell(result: Result) -> str:
    return f"{float(result):.3f} ± {np.asarray(result.standard_error).item():.3f}"
