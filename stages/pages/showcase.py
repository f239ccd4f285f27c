"""Where a graft acts: texts with the gate at each token, beside what target, donor and graft answer."""

from collections.abc import Mapping
from typing import Any

from stages.pages.texts import shown

View = dict[str, Any]

_TEXTS, _TOKENS, _ON_PAGE = 12, 160, 160
_ORDER = ("capability", "retention", "text")
_SPEAKERS = ("target", "donor", "graft")


def showcases(found: Mapping[str, Mapping[str, Any]]) -> dict[str, View]:
    """For each variant its parts and its texts, each token with the gate of every part, scaled for shading.

    A gate is shaded from nothing at 0 to full at `top`, the larger of 1 and the variant's largest gate. At most 12
    texts a variant and 160 on the page, or 3 a variant, of 160 tokens each; `left_out` counts the rest.
    """
    most = min(_TEXTS, max(_ON_PAGE // max(len(found), 1), 3))
    return {name: _variant(told, most) for name, told in found.items()}


def _variant(told: Mapping[str, Any], most: int) -> View:
    texts = sorted(told.get("texts", ()), key=lambda text: _rank(text.get("kind")))
    by_kind = {kind: [text for text in texts if text.get("kind") == kind] for kind in dict.fromkeys(map(_kind, texts))}
    share = max(most // max(len(by_kind), 1), 1)
    kept = [text for some in by_kind.values() for text in some[:share]]
    gates = [gate for text in kept for token in text["tokens"] for gate in token["gates"] if gate is not None]
    top = max([1.0, *gates])
    parts = [shown(part, 60) for part in told.get("parts", ())]
    return {
        "parts": parts,
        "top": top,
        "gates": bool(gates),
        "texts": [_text(text, top, len(parts)) for text in kept],
        "left_out": len(texts) - len(kept),
    }


def _text(text: Mapping[str, Any], top: float, parts: int) -> View:
    tokens = [_token(token, top, parts) for token in text["tokens"][:_TOKENS]]
    means = [sum(token["gates"][part] for token in tokens) / len(tokens) for part in range(parts)] if tokens else []
    answers, right = text.get("answers") or {}, text.get("right") or {}
    return {
        "kind": shown(text.get("kind"), 40),
        "expected": shown(text["expected"]) if text.get("expected") is not None else None,
        "tokens": tokens,
        "cut": max(len(text["tokens"]) - _TOKENS, 0),
        "means": [round(mean, 3) for mean in means],
        "answers": [
            {"who": who, "said": shown(answers[who]), "right": right.get(who)}
            for who in _SPEAKERS
            if answers.get(who) is not None
        ],
    }


def _token(token: Mapping[str, Any], top: float, parts: int) -> View:
    """A token's text with its line ends made visible, its gates to three figures, and the share of full shade."""
    gates = [round(float(gate or 0.0), 3) for gate in token["gates"][:parts]]
    gates += [0.0] * (parts - len(gates))
    shades = [round(min(max(gate / top, 0.0), 1.0), 2) for gate in gates]
    said = shown(token["text"], 80).replace("\n", "⏎\n")
    return {"text": said, "gates": gates, "shades": shades, "answer": bool(token.get("answer"))}


def _kind(text: Mapping[str, Any]) -> Any:
    return text.get("kind")


def _rank(kind: Any) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
