"""Configs: YAML, overrides, the ones that come with the package, and one line for whatever is wrong."""

import dataclasses
import re
import subprocess
import sys

import pytest
import yaml

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.training import models
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.config_files import load, shipped, to_yaml


def write(tmp_path, text: str) -> str:
    (tmp_path / "config.yaml").write_text(text)
    return str(tmp_path / "config.yaml")


def test_the_config_of_the_published_model():
    config = load("megalodon_multichunk_512")
    assert sum(models.parameter_sizes(config).values()) == 11_277_696
    sizes = models.model_config(config)
    assert isinstance(sizes, MegalodonConfig)
    assert sizes.tied
    assert (sizes.vocab_size, sizes.chunk_size, sizes.pad_token_id) == (256, 256, None)
    assert sizes.compute_dtype == "bfloat16"
    assert sizes.param_dtype == "float32"
    assert config.steps * config.batch_size * config.accumulate * config.data.sequence_length == 9_830_400
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.gradient_clip) == (4e-4, 2e-4, 1.0)
    assert (optimizer.name, optimizer.beta1, optimizer.beta2, optimizer.epsilon) == ("adam_l2", 0.9, 0.999, 1e-8)


def test_every_shipped_config_is_read():
    assert shipped() == ["llama_512", "megalodon_multichunk_512", "test"]
    assert {name: load(name).model for name in shipped()} == {
        "llama_512": "llama",
        "megalodon_multichunk_512": "megalodon",
        "test": "llama",
    }
    assert sum(models.parameter_sizes(load("test", ["model=megalodon"])).values()) == 451_540


def test_the_llama_to_compare_with():
    pytest.importorskip("megalodon_jax.baselines", reason="the baselines are not there")
    config = load("llama_512")
    assert sum(models.parameter_sizes(config).values()) == 12_489_600
    assert models.attention_products(config) == 6 * (2 * 6 * 64) * 513 // 2
    with pytest.raises(ValueError, match="a llama of this section has at most 500 tokens"):
        models.model_config(load("llama_512", ["llama.max_seq_len=500"]))


def test_overrides_and_defaults(tmp_path):
    source = write(tmp_path, "steps: 5\noptimizer: {learning_rate: 4e-4}\ndata:\n  split: [0.8, 0.1, 0.1]\n")
    config = load(
        source, ["seed=3", "optimizer.beta2=0.99", "data.path=a b.txt", "log.profile=[2,4]", "megalodon.z_dim=8"]
    )
    assert (config.steps, config.seed, config.accumulate) == (5, 3, 1)
    assert (config.optimizer.learning_rate, config.optimizer.beta2) == (4e-4, 0.99)
    assert (config.data.path, config.data.split) == ("a b.txt", (0.8, 0.1, 0.1))
    assert config.log.profile == (2, 4)
    assert config.megalodon == {"z_dim": 8}


def test_yaml_and_dict_round_trip():
    config = load("megalodon_multichunk_512", ["log.profile=[2,4]", "data.split=[0.8,0.1,0.1]"])
    assert TrainingConfig.from_dict(config.to_dict()) == config
    assert TrainingConfig.from_dict(yaml.safe_load(to_yaml(config))) == config


def test_what_decides_the_weights():
    config = load("test", ["model=megalodon"])
    assert config.differences(config) == []
    changed = load(
        "test", ["model=megalodon", "steps=99", "run_dir=x", "log.every=7", "evaluation.every=3", "llama.dim=8"]
    )
    assert config.differences(changed) == []
    changed = load("test", ["model=megalodon", "seed=1", "data.sequence_length=64", "megalodon.z_dim=32"])
    assert config.differences(changed) == ["data.sequence_length", "megalodon.z_dim", "seed"]
    assert "model" in config.differences(load("test"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "unknown key stepz (did you mean steps?); the keys are run_dir, seed, steps"),
        ("optimizer.rate=3", "unknown key optimizer.rate; the keys are name, learning_rate"),
        ("steps=0", "steps must be an integer at least 1, got 0"),
        ("steps=1.5", "steps must be an integer at least 1, got 1.5"),
        ("steps=true", "steps must be an integer at least 1, got True"),
        ("steps=", "steps must be an integer at least 1, got None"),
        ("seed=4294967296", "seed must be an integer at least 0 and at most"),
        ("model=bert", "model must be megalodon or llama or gpt, got 'bert'"),
        ("data=text", "data must be a mapping of keys, got 'text'"),
        ("data.split=thirds", "data.split must be auto or literature or seed_95m or a list of 3 values, each a finite"),
        ("data.split=[1,2]", "data.split must be"),
        ("data.tokens=int8", "data.tokens must be bytes or uint16 or uint32, got 'int8'"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate must be a finite number above 0, got 0"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate must be a finite number above 0, got inf"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate must be a finite number above 0, got 'fast'"),
        ("optimizer.beta2=1.5", "optimizer.beta2 must be a finite number at least 0 and below 1, got 1.5"),
        ("optimizer.beta1=1", "optimizer.beta1 must be a finite number at least 0 and below 1, got 1"),
        ("optimizer.epsilon=1e-60", "optimizer.epsilon must be a finite number at least 1e-30, got"),
        (
            "optimizer={warmup_steps: 5, decay_steps: 3}",
            "optimizer.decay_steps, where the cosine ends, must be at least warmup_steps",
        ),
        ("optimizer.min_learning_rate=1", "optimizer.min_learning_rate must be at most learning_rate 0.001, got 1"),
        ("log.tensorboard=1", "log.tensorboard must be true or false, got 1"),
        ("log.profile=[4,2]", "log.profile must be a first step and a later last one, got [4, 2]"),
        ("steps.x=1", "unknown key steps.x: steps holds no keys, its value is 10"),
        ("steps", "'steps' is no override; give key=value"),
        ("steps=[", "the value of steps is not valid YAML"),
        ("samples.top_p=0", "samples.top_p must be a finite number above 0 and at most 1 or null, got 0"),
    ],
)
def test_bad_values_are_named(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load("test", [override])


def test_sequential_evaluation_reads_one_text():
    with pytest.raises(ValueError, match=re.escape("data.document_separator parts the text")):
        load("test", ["evaluation.sequential=test", "data.document_separator=10"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "is not valid YAML"),
        ("- 1", "must hold a mapping of keys, got list"),
        ("steps: 3\nsteps: 4", "key steps is there twice"),
        ("steps: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(write(tmp_path, text))


def test_merged_mappings(tmp_path):
    text = "optimizer: {<<: {warmup_steps: 4, learning_rate: 0.1}, warmup_steps: 5}"
    optimizer = load(write(tmp_path, text)).optimizer
    assert (optimizer.warmup_steps, optimizer.learning_rate) == (5, 0.1)


def test_a_file_that_is_not_there():
    with pytest.raises(OSError, match="give a YAML file, or one of llama_512, megalodon_multichunk_512, test"):
        load("nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("megalodon.chunk=3", "unknown key megalodon.chunk (did you mean megalodon.chunk_size?)"),
        ("megalodon.chunk_size=big", "megalodon.chunk_size must be an integer, got 'big'"),
        ("megalodon.init_mode=zero", "megalodon.init_mode must be gaussian or xavier or he or bert or kaiming or none"),
        ("megalodon.norm_num_groups=7", "megalodon.model_dim 128 must be divisible by norm_num_groups 7"),
        ("megalodon.compute_dtype=int8", "megalodon.compute_dtype must be a floating dtype"),
        ("megalodon.vocab_size=100", "megalodon.vocab_size must be at least 256 for bytes, got 100"),
        ("megalodon.output_size=300", "megalodon.output_size must be that of the vocabulary, 256, or -1; got 300"),
    ],
)
def test_bad_models_are_named(override, message):
    config = load("test", ["model=megalodon", override])
    with pytest.raises(ValueError, match=re.escape(message)):
        models.model_config(config)


def test_products_of_attention():
    config = load("megalodon_multichunk_512")
    # 6 layers, z 192 + value 384 wide, on the mean 128.5 keys of a chunk of 256
    assert models.attention_products(config) == 6 * (192 + 384) * 257 // 2
    assert models.multiplied_parameters(config) == 11_277_696
    untied = dataclasses.replace(config, megalodon=config.megalodon | {"share_emb": False})
    assert sum(models.parameter_sizes(untied).values()) == 11_277_696 + 256 * 384
    assert models.multiplied_parameters(untied) == 11_277_696


def test_the_library_does_not_need_the_extra():
    """Nor does it import what it brings."""
    code = "import sys, megalodon_jax, megalodon_jax.cli.main; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "megalodon_jax.cli.train" in loaded
    assert loaded.isdisjoint({"yaml", "orbax", "orbax.checkpoint", "tensorboardX", "matplotlib", "rich"})
