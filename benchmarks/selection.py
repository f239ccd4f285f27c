"""Forward passes that selecting took, against plain backward elimination over the same modules.

    python -m benchmarks.selection --selection data/selection/sibling

The unit is a forward pass over one batch of answers and texts; a backward pass counts as two. Plain elimination starts
with all parts, passes once without each part that is still in, drops those that cost least, and so on down to the size
of the selection: here 14 of 210 at a time, the coarse rounds of the pilot. It is counted by this definition and not
run; over finer parts than whole modules it takes more.
"""

import sys
from pathlib import Path

import typer

from stages.recipes.weights import RATIO, point
from stages.storage import read_json
from stages.tables import read_table


def elimination(count: int, kept: int, dropped: int) -> int:
    """Passes from `count` parts down to `kept`, `dropped` of them a round."""
    return sum(range(count, kept, -dropped))


def main(
    selection: Path = Path("data/selection/sibling"), modules: int = 210, dropped: int = 14, ratio: float = RATIO
) -> None:
    """Print the figures of every selection of our own, and of the one that a transplant takes."""
    frontier, descent = read_table(selection / "frontier.parquet"), read_json(selection / "descent.json")
    print(f"{descent['parts']} parts of {modules} modules; {len(descent['steps'])} steps")
    taken = point(frontier, ratio)["id"]
    own = frontier[frontier.method.isin(["strengths", "subset"])].sort_values("divergence")
    for row in own.to_dict("records"):
        share = row["size"] / descent["parts"]
        plain = elimination(modules, round(share * modules), dropped)
        said = f"{row['passes'] / plain:.2f} of them" if plain else "none to compare with"
        print(
            f"{'→' if row['id'] == taken else ' '} {row['method']}, {row['size']} parts: {row['match']:.3f} right "
            f"[{row['match_low']:.3f}, {row['match_high']:.3f}], divergence {row['divergence']:.4f} nats a token; "
            f"{row['passes']} passes, plain elimination to that share of whole modules {plain}: {said} (claim: ≤ 0.33)"
        )


if __name__ == "__main__":
    sys.exit(typer.run(main))
