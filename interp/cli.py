"""The command line: arguments into calls, and nothing else."""

import inspect
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from interp.training.recipe import Recipe

app = typer.Typer(
    help="Mechanistic interpretability of small sequence models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def score(
    model: Annotated[
        str, typer.Argument(help="a bundled name, a directory or a hub repository")
    ] = "conv-attn",
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("induction_score.html"),
    n_sequences: Annotated[int, typer.Option(help="sequences to average over")] = 50,
    seed: Annotated[int, typer.Option(help="of the random tokens")] = 0,
) -> None:
    """Score every head on repeated random tokens: a table here, and an interactive page."""
    import rich

    from interp.report import write_report

    with _errors_in_one_line():
        found = write_report(model, out, n_sequences=n_sequences, seed=seed)
    rich.print(found)
    rich.print(f"\nThe page: [bold]{found.path}[/bold]")


@app.command()
def models() -> None:
    """List the checkpoints that ship with the package."""
    import rich

    from interp.models import available

    for name in available():
        rich.print(name)


def _train(
    recipe: Annotated[str, typer.Argument(help="a bundled recipe or a TOML file")],
    out: Annotated[
        Path | None, typer.Option(help="where everything goes; by default runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint")] = False,
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, trackio or none")] = "none",
    **changes: Any,
) -> None:
    """Train a model by a recipe. Every field of the recipe has a flag, which overrides the file."""
    import rich

    from interp.training import train

    with _errors_in_one_line():
        given = {name: value for name, value in changes.items() if value is not None}
        loaded = Recipe.load(recipe)
        if "model" in given:
            given["model"] = {**loaded.model, **tomllib.loads("\n".join(given["model"]))}
        if "held_at_zero" in given:
            given["held_at_zero"] = tuple(given["held_at_zero"])
        directory = train(loaded.replace(**given), out, resume=resume, report_to=report_to)
    rich.print(f"The model: [bold]{directory}[/bold]. Score it: interp score {directory}")


def _with_recipe_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag per field of a `Recipe`, with the field's own help."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = get_type_hints(Recipe)
    flags = [_flag(item.name, types[item.name], item.metadata["help"]) for item in fields(Recipe)]
    command.__signature__ = inspect.Signature(own + flags)  # type: ignore[attr-defined]
    return command


def _flag(name: str, kind: Any, text: str) -> inspect.Parameter:
    if name == "model":
        kind, text = list[str], f"{text}, as key=value; may be repeated"
    if name == "held_at_zero":
        kind, text = list[str], f"{text}; may be repeated"
    option = Annotated[kind | None, typer.Option(help=text, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


app.command("train")(_with_recipe_flags(_train))


@app.command()
def suite(
    name: Annotated[str, typer.Argument(help="a bundled suite or a TOML file")] = "formation",
    out: Annotated[
        Path | None, typer.Option(help="where the runs go; by default runs/NAME")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="a member; may be repeated")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="a seed; may be repeated")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="a corpus, by its name there; may be repeated")
    ] = None,
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, trackio or none")] = "none",
) -> None:
    """Train the runs of a suite that are not finished yet; several at once share them out."""
    import rich

    from interp.training.suite import train_suite

    with _errors_in_one_line():
        directory = train_suite(
            name,
            out,
            members=only or (),
            seeds=seed or (),
            corpora=corpus or (),
            report_to=report_to,
        )
    rich.print(f"The runs: [bold]{directory}[/bold]")


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What a user did wrong, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
