"""What one cell of the scores is worth, beside another sequence's cell of the same kind.

`python docs/data/matched_control.py` measures the bundled checkpoints and writes the table that the
pages show, `matched-control.csv`. Text is the documentation of the Python that runs, so on another
machine it is other text.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import interp
from interp.analysis import InductionScore, RepeatedTokens
from interp.models.shapes import Tokens
from interp.views import view

HERE = Path(__file__).parent
MODELS, PAIRS = ("conv-attn", "smeared-attn"), ((0, 1), (0, 0))
DOCUMENTS, LENGTH = 128, 256


def openings(tokenizer: Any) -> tuple[list[str], Tokens]:
    """The first tokens of held-out documents that have as many, and the package of each.

    A hash of a document decides whether it is held out: it was so when the models were trained.
    Each page begins with a heading that names its module.
    """
    packages, rows = [], []
    for document in interp.load_corpus("python-docs").split("validation"):
        ids = tokenizer(document, add_special_tokens=False)["input_ids"][: LENGTH - 1]
        if len(ids) == LENGTH - 1:
            packages.append(document.split()[1].split(".")[0])
            rows.append([tokenizer.bos_token_id, *ids])
    chosen = torch.linspace(0, len(rows) - 1, 2 * DOCUMENTS).round().int().unique().tolist()
    return [packages[i] for i in chosen], torch.tensor([rows[i] for i in chosen])


def shuffled(probe: RepeatedTokens, seed: int) -> Tokens:
    """First copies, each followed by its own tokens in another order: what matches is elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    first = probe.tokens[:, : probe.start + probe.n]
    orders = [torch.randperm(probe.n, generator=generator) for _ in first]
    return torch.cat([first, first[:, probe.start :].gather(1, torch.stack(orders))], 1)


def measured(
    name: str, text: Tokens, packages: list[str], other_text: Tokens
) -> Iterator[pd.DataFrame]:
    """Each metric without a cell of all heads of the last layer, and without another sequence's."""
    model = interp.load(name)
    best = interp.induction_score(model).best()
    viewed = view(model)
    heads = [head for head in viewed.head_labels if head.startswith(f"L{max(viewed.heads)}")]
    probe, other = (
        interp.repeated_tokens(
            50, d_vocab=viewed.d_vocab, bos=viewed.bos, exclude=viewed.special_tokens, seed=seed
        )
        for seed in (0, 1)
    )
    judged = (
        (probe, shuffled(other, seed=1), None, (InductionScore(best), "second_copy_loss")),
        (text, other_text, packages, ("loss",)),
    )
    for tokens, others, groups, metrics in judged:
        cells = {
            f"{whose} {pair}": [
                hook for head in heads for hook in interp.without_lag_pair(model, head, pair, of=of)
            ]
            for pair, (whose, of) in product(PAIRS, (("own", None), ("another's", others)))
        }
        for metric in metrics:
            result = interp.ablate(
                model, tokens, cells, metric=metric, groups=groups, control="none"
            )
            origin = {key: result.provenance.get(key) for key in ("n_sequences", "n_groups")}
            yield result.to_frame().assign(**origin, metric=result.provenance["metric"], model=name)


def main() -> None:
    """Measure the bundled models, and write one table."""
    torch.set_num_threads(1)
    tokenizer = interp.load(MODELS[0]).tokenizer
    packages, blocks = openings(tokenizer)
    print(len(blocks), "documents of", len(set(packages)), "packages")
    # Neighbours are often of one package: the others come from half-way round.
    halves = blocks[::2], packages[::2], blocks[1::2].roll(len(blocks) // 4, 0)
    frames = [frame for name in MODELS for frame in measured(name, *halves)]
    columns = ["model", "metric", "n_sequences", "n_groups", "component", "measure", "value"]
    whole = pd.concat(frames, ignore_index=True)[[*columns, "standard_error"]]
    whole.round(5).to_csv(HERE / "matched-control.csv", index=False)


if __name__ == "__main__":
    main()
