"""Published files are read for their tensors alone, under the names that tools give, or refused in one sentence."""

import os

import pytest
import torch
from safetensors.torch import save_file

from stages.errors import BadInput
from stages.published import published_autoencoder, published_vector

WIDTH, FEATURES = 8, 12


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


E, D, B, C = drawn(FEATURES, WIDTH), drawn(FEATURES, WIDTH), drawn(FEATURES), drawn(WIDTH)
WAYS = {
    "saelens": {"W_enc": E.T.contiguous(), "b_enc": B, "W_dec": D, "b_dec": C},
    "linear": {"encoder.weight": E, "encoder.bias": B, "decoder.weight": D.T.contiguous(), "bias": C},
    "openai": {"encoder.weight": E, "latent_bias": B, "decoder.weight": D.T.contiguous(), "pre_bias": C},
}


@pytest.mark.parametrize("inside", ["", "state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("way", WAYS)
def test_an_autoencoder_is_read_under_each_tools_names(tmp_path, way, suffix, inside):
    path = tmp_path / f"sae{suffix}"
    if suffix == ".pt":
        torch.save({inside: WAYS[way], "k": 3} if inside else WAYS[way], path)
    else:
        save_file(WAYS[way], path)
    found, x = published_autoencoder(path, WIDTH), drawn(5, WIDTH)
    assert torch.allclose(found(x), ((x - C) @ E.T + B).relu() @ D + C, atol=1e-5)
    other = published_autoencoder(path, WIDTH, centred=False)
    assert torch.allclose(other(x), (x @ E.T + B).relu() @ D + C, atol=1e-5)


def test_a_threshold_lets_only_what_lies_above_it_work(tmp_path):
    torch.save(WAYS["saelens"] | {"threshold": torch.full((FEATURES,), 1.5)}, tmp_path / "sae.pt")
    found, x = published_autoencoder(tmp_path / "sae.pt", WIDTH), drawn(5, WIDTH)
    pre = (x - C) @ E.T + B
    torch.testing.assert_close(found.features(x), torch.where(pre > 1.5, pre, 0.0))


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (1, 1, WIDTH)])
def test_a_vector_is_read_bare_or_named(tmp_path, shape):
    torch.save(C.reshape(shape), tmp_path / "bare.pt")
    torch.save({"direction": C.reshape(shape).half()}, tmp_path / "named.pt")
    assert torch.equal(published_vector(tmp_path / "bare.pt", WIDTH), C)
    assert torch.equal(published_vector(tmp_path / "named.pt", WIDTH), C.half().float())


class Touches:
    """What writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("read", [published_vector, published_autoencoder])
def test_code_in_a_pickle_is_not_run(tmp_path, read):
    torch.save({"vector": C, "more": Touches(tmp_path / "run")}, tmp_path / "bad.pt")
    with pytest.raises(BadInput, match="does not open as a file of tensors alone"):
        read(tmp_path / "bad.pt", WIDTH)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (published_vector, torch.zeros(WIDTH + 1), r"one vector of width 8 in .*, got a tensor \[9\]"),
        (published_vector, {"a": C, "b": C}, r"got a \[8\], b \[8\]; save that vector alone"),
        (published_vector, {"note": "hello"}, "got no tensor"),
        (published_vector, torch.full((WIDTH,), float("nan")), "Expected finite real numbers"),
        (published_vector, torch.arange(WIDTH), "Expected finite real numbers"),
        (published_autoencoder, {"W_enc": E.T}, r"an encoder .* and a decoder .*, got W_enc \[8, 12\]"),
        (published_autoencoder, {"W_enc": E, "W_dec": D}, r"\[features, 8\] in .*, got \[8, 12\] and \[12, 8\]"),
        (published_autoencoder, WAYS["saelens"] | {"b_enc": C}, r"b_enc of shape \[12\] in .*, got \[8\]"),
        (published_autoencoder, WAYS["openai"] | {"pre_bias": B}, r"b_dec of shape \[8\] in .*, got \[12\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, read, value, message):
    torch.save(value, tmp_path / "given.pt")
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "given.pt", WIDTH)


@pytest.mark.parametrize("content", [None, b"", b"hello", b"PK\x03\x04 cut off"])
def test_what_is_no_file_of_tensors_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "given.pt").write_bytes(content)
    with pytest.raises(BadInput, match="is not there; put it there" if content is None else "tensors alone"):
        published_vector(tmp_path / "given.pt", WIDTH)
