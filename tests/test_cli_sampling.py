"""Bytes of a model that has a longest stream, and text of bytes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.baselines import GPT, GPTConfig
from megalodon_jax.cli import sampling


@pytest.mark.parametrize("draw", [sampling.stream_bytes, sampling.draw_bytes])
def test_text_beyond_the_longest_stream(draw):
    """Each byte after those before it that fit, as nanoGPT crops; the first ones after all there are."""

    def gpt(**changes) -> GPT:
        config = GPTConfig(vocab_size=256, block_size=8, n_layer=1, n_head=1, n_embd=8, **changes)
        small = GPT(config, key=jax.random.key(0))
        return eqx.tree_at(lambda model: model.model.embed.weight, small, replace_fn=lambda weight: 20 * weight)

    model = gpt()
    for prompt in (b"abc", b"0123456789"):
        text = [*prompt]
        for number in range(12):
            last = text if number < 8 - len(prompt) else text[-7:]
            text.append(int(np.argmax(model(jnp.asarray([last], jnp.int32))[0][0, -1])))
        assert list(draw(model, prompt, 12, seed=0, temperature=0.0)) == text[len(prompt) :]
    first = list(draw(model, b"abc", 40, seed=0))
    assert list(draw(model, b"abc", 40, seed=0)) == first != list(draw(model, b"abc", 40, seed=1))
    assert list(draw(gpt(eos_token_id=first[20]), b"abc", 40, seed=0)) == first[: first.index(first[20]) + 1]


def test_decoding_waits_for_whole_characters_and_never_fails():
    assert list(sampling.decoded(b"a\xc3\xa9\xff")) == ["a", "", "é", "�", ""]
    assert "".join(sampling.decoded(b"\xe2\x82")) == "�"
