"""How much likelier one model finds the right continuation than the wrong one, after both prompts of every pair."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pydantic
from transformers import PreTrainedTokenizerBase

from stages.anatomy.encoding import Encoded, encode
from stages.anatomy.likelihood import score
from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.contrasts.pair import Pair
from stages.settings import Settings, read
from stages.storage import new_file, read_jsonl


class Weigh(Settings):
    """How pairs are passed through a model."""

    budget: int = pydantic.Field(gt=0)
    """Padded tokens a forward pass."""


def weigh(model: Path, pairs: Sequence[Pair], settings: Weigh) -> pd.DataFrame:
    """A row a pair: id, category, moves, cluster, and the log-odds in nats after its `first` and its `second` prompt.

    They are log p(right | prompt) − log p(wrong | prompt), each summed over the tokens of the continuation, so that
    models with different tokenizers are asked about the same texts. A side that the tokenizer cannot spell is NaN.
    Rounded to 1e-6. Raises BadInput when a prompt or continuation has no token of its own.
    """
    tokenizer = load_tokenizer(model)
    sides = [side for pair in pairs for side in pair.sides]
    encoded = encode(tokenizer, [(side.prompt, told) for side in sides for told in (side.right, side.wrong)])
    right, wrong = score(load(model), encoded, settings.budget).loglikelihood.numpy().reshape(-1, 2).T
    spelled = np.array([_spells(tokenizer, each) for each in encoded]).reshape(-1, 2).all(1)
    odds = np.where(spelled, right - wrong, np.nan).reshape(-1, 2).round(6)
    rows = [{"id": p.id, "category": p.category, "moves": p.moves, "cluster": p.cluster} for p in pairs]
    return pd.DataFrame(rows).assign(first=odds[:, 0], second=odds[:, 1])


def _spells(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> bool:
    """Whether the ids say what the text says: no part of it is the unknown token."""
    return tokenizer.unk_token_id is None or tokenizer.unk_token_id not in encoded.ids


def main(model: Path, pairs: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Put one model to the pairs, as params.yaml says under `counterfactual.reading`."""
    settings = read(params, "counterfactual.reading", Weigh)
    told = [Pair(**{key: value for key, value in row.items() if key != "id"}) for row in read_jsonl(pairs)]
    frame = weigh(model, told, settings)
    with new_file(out) as scratch:
        frame.to_parquet(scratch, index=False)


if __name__ == "__main__":
    run(main)
