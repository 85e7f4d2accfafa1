"""The config of a base model: each field is kept, set by the run, deleted or refused."""

import dataclasses
import inspect
import json
import re
import shutil

import pytest
import torch
from PIL import Image
from support import load_recipe_script, train
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    PreTrainedConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.models.base_config import DELETED, REFUSED, SET
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

NAMES = ["a", "b", "c"]
COLOUR = ImageInfo((16, 16), 3)
SMALL = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16,
         "num_hidden_layers": 1}  # fmt: skip

# Every field that a config of any model has, or that transformers reads from config.json, and what becomes of it.
FIELDS = dict.fromkeys(SET, "set") | dict.fromkeys(DELETED, "deleted") | dict.fromkeys(REFUSED, "refused") | {
    "id2label": "set", "label2id": "set", "num_labels": "set", "problem_type": "set",  # by the task of the data
    "dtype": "set", "torch_dtype": "set",  # float32
    "architectures": "set", "transformers_version": "set",  # by saving
    "name_or_path": "set", "_name_or_path": "set",  # by loading; never saved
    "_commit_hash": "set", "model_type": "taken",
    "_output_attentions": "set", "_attn_implementation_internal": "set", "_experts_implementation_internal": "set",
    "chunk_size_feed_forward": "taken",  # the same results with less memory
    "is_encoder_decoder": "taken",  # the architecture, like all fields of the models' own configs
    "per_layer_config": "taken", "tie_last_hidden_states": "taken",
    "rope_scaling": "taken", "rope_theta": "taken", "rope_parameters": "taken",
    "_post_init_done": "taken",  # no field: a mark of transformers
}  # fmt: skip


def _fields_of_transformers() -> set[str]:
    """The fields of `PreTrainedConfig`: declared, read from the arguments of `__post_init__`, or set there."""
    source = inspect.getsource(PreTrainedConfig.__post_init__)
    read = re.findall(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""", source)
    override = re.search(r"valid_fields = \[(.*?)\]", inspect.getsource(PreTrainedConfig.from_dict), re.DOTALL)
    named = re.findall(r'"(\w+)"', override[1]) if override else []
    return {field.name for field in dataclasses.fields(PreTrainedConfig)} | vars(PreTrainedConfig()).keys() | {
        *read, *named}  # fmt: skip


def test_every_field_of_a_config_is_taken_set_deleted_or_refused():
    new = _fields_of_transformers() - FIELDS.keys()
    assert not new, f"this version of transformers has new fields: decide what a run does with {new}"
    assert set(FIELDS.values()) <= {"taken", "set", "deleted", "refused"}


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory):
    """A small saved ViT for the classes a, b and c. Read-only."""
    torch.manual_seed(0)
    labels = SingleLabel(NAMES).config_options()
    folder = tmp_path_factory.mktemp("saved") / "vit"
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    Classifier(ViTForImageClassification(ViTConfig(**SMALL, **labels)), processor).save(folder)
    return folder


@pytest.fixture(scope="module")
def saved_timm(tmp_path_factory):
    """A small saved model of timm for the classes a, b and c. Read-only."""
    args = ModelArguments(model="timm/test_resnet", image_size=[16])
    folder = tmp_path_factory.mktemp("saved") / "timm"
    Classifier.build(args, SingleLabel(NAMES), COLOUR, pretrained=False).save(folder)
    return folder


@pytest.fixture
def with_config(saved_vit, tmp_path):
    """`with_config(key=value)`: a copy of the saved model with these values in its config; None deletes a key."""

    def change(source=saved_vit, **values):
        folder = shutil.copytree(source, tmp_path / "changed", dirs_exist_ok=True)
        config = json.loads((source / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return folder

    return change


def build(folder, names=NAMES, **options):
    args = ModelArguments(model=str(folder), **options)
    return Classifier.build(args, SingleLabel(names), COLOUR, pretrained=True)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


POISON = {
    "attn_implementation": "flash_attention_2",
    "experts_implementation": "grouped_mm",
    "_attn_implementation": "flash_attention_2",
    "_experts_implementation": "grouped_mm",
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict": False,
    "gradient_checkpointing": True,
    "fusion_config": {"patch_embeddings": True},
    "finetuning_task": "another",
    "task_specific_params": {"another": {"a": 1}},
    "problem_type": "multi_label_classification",
    "dtype": "bfloat16",
    "architectures": ["ViTForMaskedImageModeling"],
    "id2label": {"0": "a", "1": "a", "4": "b"},
}


def test_a_run_sets_what_a_base_brings_along(saved_vit, with_config, tmp_path):
    assert {*SET, *DELETED} <= POISON.keys()
    expected, found = tmp_path / "expected", tmp_path / "found"
    build(saved_vit, ["x", "y"]).save(expected)
    trained = build(with_config(**POISON), ["x", "y"])
    assert not trained.model.is_activation_checkpointing
    trained.save(found)
    assert config_of(found) == config_of(expected)
    assert config_of(found)["problem_type"] == "single_label_classification"
    outputs = trained.model(torch.zeros(1, 3, 16, 16))
    assert outputs.hidden_states is None and outputs.attentions is None


def test_the_parts_of_a_base_are_set_too(tmp_path, refused):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = small | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(vision_config=vision, text_config=small | {"vocab_size": 9}, projection_dim=16, num_labels=3)
    Classifier(CLIPForImageClassification(config), ViTImageProcessor(size={"height": 16, "width": 16})).save(tmp_path)
    written = config_of(tmp_path)
    for poison in ({"output_hidden_states": True, "return_dict": False, "gradient_checkpointing": True},
                   {"quantization_config": {"quant_method": "gptq", "bits": 4}}):  # fmt: skip
        changed = written | {"vision_config": written["vision_config"] | poison}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        if "quantization_config" in poison:
            with refused("quantised (gptq)"):
                build(tmp_path, ["x", "y"])
        else:
            model = build(tmp_path, ["x", "y"]).model
            assert not model.is_activation_checkpointing
            assert model(torch.zeros(1, 3, 16, 16)).hidden_states is None


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_pipeline_gives_the_probabilities_of_a_run_on_any_base(with_config, tmp_path, problem, capsys):
    """A pipeline would take the sigmoid of each class, whose sum is not 1, or the logits as they are."""
    folder = with_config(problem_type=problem)
    job = train(tmp_path / "run", "--model", folder, "--method", "linear_probe", "--max_steps", 2,
                "--max_train_samples", 40, "--eval_strategy", "no", "--load_best_model_at_end", "false")  # fmt: skip
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    scores = pipeline("image-classification", str(job.folder / "model"))(str(tmp_path / "red.png"), top_k=10)
    assert sum(row["score"] for row in scores) == pytest.approx(1, abs=1e-5)
    load_recipe_script("predict").main(["--model", str(job.folder), str(tmp_path / "red.png"), "--format", "jsonl"])
    likeliest = json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"][0]
    assert likeliest["label"] == scores[0]["label"]
    assert likeliest["probability"] == pytest.approx(scores[0]["score"], abs=1e-4)


LABELS = {
    "gaps": ({"id2label": {"0": "a", "1": "b", "3": "c"}}, ["0, 1, 3", "from 0 without gaps"]),
    "too many": ({"id2label": {str(i): str(i) for i in range(5)}}, ["(5,) instead of (3,)", "names 5 classes"]),
    "too few": ({"id2label": {"0": "a", "1": "b"}}, ["(2,) instead of (3,)", "names 2 classes"]),
    "fewer than num_labels": ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, ["has 3 classes", "numbers 0, 1"]),
    "several labels": ({"problem_type": "multi_label_classification"}, ["multi_label", "fine-tune it first"]),
    "a number": ({"problem_type": "regression"}, ["regression", "one of several classes"]),
}


@pytest.mark.parametrize("name", LABELS)
def test_wrong_classes_are_an_obstacle_only_where_the_head_is_used(with_config, refused, name):
    values, words = LABELS[name]
    folder = with_config(**values)
    assert build(folder, ["x", "y"]).task.names == ["x", "y"]
    with refused("changed", *words):
        Classifier.load(str(folder))


@pytest.mark.parametrize("labels", [["a", "b", "c"], {"a": 0, "b": 1, "c": 2}])
def test_classes_need_numbers(with_config, refused, labels):
    folder = with_config(id2label=labels)
    for load in (lambda: build(folder), lambda: Classifier.load(str(folder))):
        with refused("id2label", "by their numbers"):
            load()


@pytest.mark.parametrize("names", [["crane", "bee"], ["crane", "bee", "fly", "ant"]], ids=len)
def test_timms_own_list_of_classes_must_fit_too(saved_timm, with_config, refused, names):
    folder = with_config(saved_timm, label_names=names)
    with refused("label_names" if len(names) < 3 else "names"):
        Classifier.load(str(folder))
    assert build(folder, ["x", "y"]).task.names == ["x", "y"]


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_classes_of_one_name_are_told_apart_where_they_are_used(saved_timm, with_config, caplog, kind):
    names, told = ["crane", "bee", "crane"], ["crane", "bee", "crane (2)"]
    folder = with_config(id2label=dict(enumerate(names)), label2id={"crane": 2, "bee": 1})
    if kind == "timm":
        folder = with_config(saved_timm, label_names=names)
    loaded = Classifier.load(str(folder))
    assert loaded.task.names == told
    assert "has several with the same name, numbered here: crane, crane (2)" in caplog.text
    assert loaded.model.config.label2id == {"crane": 0, "bee": 1, "crane (2)": 2}
    assert build(folder, ["bee", "crane", "fly"]).task.names == ["bee", "crane", "fly"]  # the head is new


def test_label_names_that_are_numbers_become_text(with_config):
    assert Classifier.load(str(with_config(id2label={"0": 7, "1": 8, "2": 9}))).task.names == ["7", "8", "9"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            ["bitsandbytes", "dequantize"],
        ),
        ({"compression_config": {"format": "packed"}}, ["quantised", "dequantize"]),
        ({"model_type": "vit_mae"}, ["of the type vit_mae", "no image classifier"]),
        ({"model_type": "no_such_type"}, ["no_such_type"]),
        ({"hidden_size": "16"}, ["hidden_size", "expected int"]),
        ({"hidden_dropout_prob": 2.0}, ["between 0 and 1"]),
        ({"use_return_dict": False}, ["use_return_dict"]),
        ({"dtype": "float33"}, ["float33"]),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_used_is_one_sentence(with_config, refused, values, words):
    folder = with_config(**values)
    for load in (lambda: build(folder), lambda: Classifier.load(str(folder))):
        with refused("model: ", *words):
            load()


def test_the_models_own_dropout_is_said(with_config, caplog):
    caplog.set_level("INFO", "ftkit")
    build(with_config(hidden_dropout_prob=0.25))
    assert "dropout: hidden_dropout_prob 0.25, in the model's config" in caplog.messages
    assert build(with_config(hidden_dropout_prob=0.25), dropout=0.5).model.config.hidden_dropout_prob == 0.5
