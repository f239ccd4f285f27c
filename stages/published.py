"""Vectors and sparse autoencoders that others published as a file of tensors, read without running anything of it."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.errors import BadInput
from stages.maths.autoencoder import Autoencoder

_ENCODER = {"W_enc": True, "encoder.weight": False}
"""Names of the encoder, and whether it stands as [width, features], not as [features, width]."""
_DECODER = {"W_dec": False, "decoder.weight": True}
_ENCODER_BIAS = ("b_enc", "encoder.bias", "latent_bias")
_CENTRE = ("b_dec", "pre_bias", "decoder.bias", "bias")


def published_vector(path: Path, width: int) -> torch.Tensor:
    """The one vector [width] that a file holds, in float32.

    Raises BadInput when it holds anything else.
    """
    found = _tensors(path)
    shapes = {name: list(value.shape) for name, value in found.items()}
    vectors = [value.reshape(-1) for value in found.values() if value.numel() == width == max(value.shape, default=0)]
    if len(vectors) != 1 or len(found) != 1:
        raise BadInput(f"Expected one vector of width {width} in {path}, got {_told(shapes)}; save that vector alone.")
    return vectors[0].float()


def published_autoencoder(path: Path, width: int, centred: bool = True) -> Autoencoder:
    """The sparse autoencoder that a file holds, in float32; with a threshold where it has one, else a ReLU.

    `centred` says whether its decoder's bias is taken off the states before they are encoded; no file tells.

    Read are the names that SAELens (`W_enc`, `b_enc`, `W_dec`, `b_dec`, `threshold`), dictionary_learning and OpenAI's
    (`encoder.weight`, `latent_bias`, `decoder.weight`, `pre_bias`) give. Raises BadInput when a tensor is missing, or
    its shape fits neither the others nor states of this width.
    """
    found = _tensors(path)
    shapes = {name: list(value.shape) for name, value in found.items()}
    encoder, decoder = (_matrix(found, names) for names in (_ENCODER, _DECODER))
    if encoder is None or decoder is None:
        raise BadInput(
            f"Expected an encoder ({', '.join(_ENCODER)}) and a decoder ({', '.join(_DECODER)}) in {path}, got "
            f"{_told(shapes)}; save a sparse autoencoder under these names."
        )
    if encoder.ndim != 2 or encoder.shape != decoder.shape or encoder.shape[1] != width:
        raise BadInput(
            f"Expected encoder and decoder of one shape [features, {width}] in {path}, got {list(encoder.shape)} and "
            f"{list(decoder.shape)}; name one that was trained on states of width {width}."
        )
    features = len(encoder)
    bias = _vector(path, found, _ENCODER_BIAS, features)
    threshold = _vector(path, found, ("threshold",), features)
    centre = _vector(path, found, _CENTRE, width)
    return Autoencoder(encoder, bias if centred else bias + encoder @ centre, threshold, decoder, centre)


def _matrix(found: Mapping[str, torch.Tensor], names: Mapping[str, bool]) -> torch.Tensor | None:
    """[features, width], in float32."""
    name = next((name for name in names if name in found), None)
    if name is None:
        return None
    matrix = found[name].float()
    return (matrix.T if names[name] else matrix).contiguous()


def _vector(path: Path, found: Mapping[str, torch.Tensor], names: tuple[str, ...], size: int) -> torch.Tensor:
    """[size], in float32; zeros where the file has none, one number counting for all."""
    value = next((found[name].float() for name in names if name in found), torch.zeros(size))
    if value.numel() == 1:
        return value.reshape(1).expand(size).clone()
    if value.shape != (size,):
        raise BadInput(f"Expected {names[0]} of shape [{size}] in {path}, got {list(value.shape)}; correct the file.")
    return value


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The finite tensors of a safetensors file or a pickle of nothing but tensors, by name."""
    if not path.is_file():
        raise BadInput(f"Expected a .pt or .safetensors file at {path}, but it is not there; put it there.")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise BadInput(
            f"{path} does not open as a file of tensors alone, and nothing else is run or read; save it again with "
            "torch.save of a state_dict, or as safetensors."
        ) from error
    if isinstance(found, torch.Tensor):
        found = {"": found}
    while isinstance(found, dict) and not any(isinstance(value, torch.Tensor) for value in found.values()):
        inner = [value for value in found.values() if isinstance(value, dict)]
        if len(inner) != 1:  # a state_dict may lie in a dictionary beside settings
            break
        found = inner[0]
    tensors = (
        {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
        if isinstance(found, dict)
        else {}
    )
    for name, value in tensors.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise BadInput(f"Expected finite real numbers in {path}, got others in {name!r}; correct the file.")
    return tensors


def _told(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name or 'a tensor'} {shape}" for name, shape in sorted(shapes.items())) or "no tensor"
