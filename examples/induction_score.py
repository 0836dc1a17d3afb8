# %% [markdown]
# # Which heads copy from context?
#
# An induction head completes `[A][B] … [A] -> [B]`: from the second `A` it looks at what followed
# the first. On random
# tokens, repeated once, nothing but the repetition can be predicted, so a head that looks there is
# found at once.
#
# `python examples/induction_score.py [--model NAME_OR_PATH] [--out FILE.html]` prints the scores
# of every head and
# writes an interactive page.

# %%
from pathlib import Path
from typing import Annotated

import rich
import typer

import interp


def main(
    model: Annotated[
        str, typer.Option(help="a bundled name, a directory or a hub repository")
    ] = "conv-attn",
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("induction_score.html"),
) -> None:
    """Score every head of a model on repeated random tokens."""
    found = interp.write_report(model, out)
    rich.print(found)
    rich.print(f"\nThe page: [bold]{out}[/bold]")


# %%
if __name__ == "__main__":
    typer.run(main)
