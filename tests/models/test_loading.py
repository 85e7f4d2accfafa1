"""Weights that a file lacks: a load is complete, or refused with the names of the missing tensors."""

import importlib.util
import json
import shutil

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from support import load_recipe_script, train
from timm.models import save_for_hf
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForMaskedImageModeling,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from ftkit.config import ModelArguments
from ftkit.data.pixels.images import ImageInfo
from ftkit.models.anatomy import find_head
from ftkit.models.classifier import Classifier
from ftkit.tasks import SingleLabel

NAMES = ["a", "b", "c"]
OF_NAMES = {"num_labels": 3, "id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
COLOUR = ImageInfo((16, 16), 3)
SMALL = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16,
         "num_hidden_layers": 2}  # fmt: skip
PROCESSOR = ViTImageProcessor(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """Small models for the classes a, b and c, each in a folder of its name: vit, swin, timm, convnet. Read-only."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    Classifier(ViTForImageClassification(ViTConfig(**SMALL, **OF_NAMES)), PROCESSOR).save(root / "vit")
    swin = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4)
    Classifier(SwinForImageClassification(SwinConfig(**swin.to_dict() | OF_NAMES)), PROCESSOR).save(root / "swin")
    for name, model in (("timm", "timm/test_vit"), ("convnet", "convnet")):
        args = ModelArguments(model=model, image_size=[16])
        Classifier.build(args, SingleLabel(NAMES), COLOUR, pretrained=False).save(root / name)
    return root


@pytest.fixture
def with_tensors(saved_models, tmp_path):
    """`with_tensors("vit", function)`: a copy of the folder whose tensors the function has replaced by others."""

    def change(name, function):
        folder = shutil.copytree(saved_models / name, tmp_path / "changed")
        tensors = function(load_file(folder / "model.safetensors"))
        save_file({key: value.clone() for key, value in tensors.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip
        return folder

    return change


def build(folder, names=NAMES):
    return Classifier.build(ModelArguments(model=str(folder)), SingleLabel(names), COLOUR, pretrained=True).model


def assert_same_weights(model, folder, but=()):
    expected = Classifier.load(str(folder)).model.state_dict()
    found = {name: value for name, value in model.state_dict().items() if not name.startswith(but or "-")}
    assert found and all(torch.equal(value, expected[name]) for name, value in found.items())


def prefixed(prefix):
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def bare(tensors):
    return {name.removeprefix("timm_model."): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit", "_orig_mod."), ("vit", "module._orig_mod."), ("timm", "module."), ("convnet", "model.")],
)
def test_prefixes_of_wrappers_are_stripped_and_said(saved_models, with_tensors, caplog, tmp_path, name, prefix):
    folder = with_tensors(name, prefixed(prefix))
    for model in (Classifier.load(str(folder)).model, build(folder)):
        assert_same_weights(model, saved_models / name)
        assert f"start with {prefix}, from a wrapper: stripped" in caplog.text
    model.save_pretrained(tmp_path / "again")
    stored = [set(load_file(place / "model.safetensors")) for place in (tmp_path / "again", saved_models / name)]
    assert stored[0] == stored[1]


def two_copies(tensors):
    trained = {f"online_model.{name}": value + 1 for name, value in tensors.items()}
    return {**prefixed("ema_model.")(tensors), **trained, "step": torch.tensor(7)}


WRAPPED = {
    "two names": (lambda tensors: prefixed("net.encoder.")(bare(tensors)), "net.encoder.", ""),
    "AveragedModel": (
        lambda tensors: prefixed("module.")(tensors) | {"n_averaged": torch.tensor(7)},
        "module.",
        "n_a",
    ),
    "two copies": (two_copies, "ema_model.", "online_model"),
    "Lightning": (
        lambda tensors: prefixed("model.")(tensors) | {"loss.weight": torch.ones(3)},
        "model.",
        "loss.weight",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_a_wrapper_holds_beside_the_model_is_named(saved_models, with_tensors, caplog, name):
    caplog.set_level("INFO", "ftkit")
    function, prefix, beside = WRAPPED[name]
    assert_same_weights(Classifier.load(str(with_tensors("timm", function))).model, saved_models / "timm")
    assert f"start with {prefix}, from a wrapper: stripped" in caplog.text
    assert beside in caplog.text


@pytest.mark.parametrize("kind", ["safetensors", "shards", "bin", "shards of bin"])
def test_wrapped_weights_in_every_kind_of_file(saved_models, tmp_path, kind):
    wrapped = prefixed("module.")(load_file(saved_models / "vit" / "model.safetensors"))
    folder = shutil.copytree(saved_models / "vit", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    suffix = "bin" if "bin" in kind else "safetensors"
    whole = "pytorch_model" if suffix == "bin" else "model"
    write = torch.save if suffix == "bin" else save_file
    parts = {f"{whole}.{suffix}": wrapped}
    if "shards" in kind:
        names = sorted(wrapped)
        parts = {f"{whole}-0000{i}-of-00002.{suffix}": {n: wrapped[n] for n in names[i - 1 :: 2]} for i in (1, 2)}
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (folder / f"{whole}.{suffix}.index.json").write_text(json.dumps(index))
    for file, part in parts.items():
        write(part, folder / file)
    assert_same_weights(Classifier.load(str(folder)).model, saved_models / "vit")


def without(*parts):
    return lambda tensors: {name: value for name, value in tensors.items() if not any(p in name for p in parts)}


def with_more(**more):
    """The tensors with others added, in whose names `__` stands for a dot."""
    return lambda tensors: tensors | {name.replace("__", "."): value for name, value in more.items()}


def one_layer_more(tensors):
    return tensors | {name.replace(".layer.1.", ".layer.2."): value.clone() for name, value in tensors.items()}


def doubled(tensors):
    return {name: value.repeat(*[2] * value.ndim) for name, value in tensors.items()}


def in_8_bits(tensors):
    return {name: (99 * value).to(torch.int8) for name, value in tensors.items()}


def with_adapters_inside(tensors):
    more = {"timm_model.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 64)}
    return {name.replace("qkv.", "qkv.base_layer."): value for name, value in tensors.items()} | more


ONE, NAN = torch.ones(1), torch.full((16,), float("nan"))
BROKEN = {
    "a layer short": ("vit", without(".layer.1."), ["16 of its 40 tensors", "no weights", "vit.layers.1.", "11 more"]),
    "no body": ("vit", without("vit."), ["38 of its 40 tensors"]),
    "another model": ("vit", lambda tensors: {"conv.weight": ONE}, ["1 key of the file fit nowhere: conv"]),
    "no statistics": ("convnet", without("running_"), ["running_mean", "running_var"]),
    "other shapes": ("vit", doubled, ["vit.embeddings.cls_token (1, 1, 16) instead of (2, 2, 32)"]),
    "a layer more": ("vit", one_layer_more, ["layers that ViTForImageClassification does not have", "vit.layers.2."]),
    "a scale more": ("timm", with_more(blocks__0__ls1__gamma=ONE), ["layers that", "blocks.0.ls1.gamma"]),
    "a bias more": ("swin", with_more(swin__encoder__layers__0__downsample__reduction__bias=ONE), ["reduction.bias"]),
    "adapters": ("timm", with_adapters_inside, ["qkv.weight", "base_layer"]),
    "NaN": (
        "vit",
        with_more(vit__layernorm__weight=NAN),
        ["NaN or infinite", "1 of 40 tensors: vit.layernorm.weight"],
    ),
    "infinity": (
        "vit",
        with_more(vit__layernorm__bias=torch.full((16,), torch.inf)),
        ["infinite", "vit.layernorm.bias"],
    ),
    "8 bits": ("vit", in_8_bits, ["integers", "quantised", "dequantize()"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_refused_wherever_it_is_loaded(with_tensors, refused, name):
    base, function, words = BROKEN[name]
    folder = with_tensors(base, function)
    for load in (lambda: Classifier.load(str(folder)), lambda: build(folder, ["x", "y"])):
        with refused(str(folder), *words):
            load()


BESIDE = {
    "vit": with_more(decoder__0__weight=ONE, text_model__encoder__layers__0__q__weight=ONE,
                     vit__embeddings__mask_token=ONE, vit__pooler__dense__weight=ONE),
    "timm": with_more(head_dist__weight=ONE, mask_token=ONE, decoder__blocks__0__norm1__weight=ONE),
}  # fmt: skip


@pytest.mark.parametrize("base", BESIDE)
def test_what_lies_beside_a_model_is_named_in_one_line(saved_models, with_tensors, caplog, base):
    caplog.set_level("INFO", "ftkit")
    assert_same_weights(Classifier.load(str(with_tensors(base, BESIDE[base]))).model, saved_models / base)
    line = next(record.getMessage() for record in caplog.records if "no such tensors" in record.getMessage())
    assert all(name in line for name in BESIDE[base]({}))


COMPUTED = {
    "counts of batches": ("convnet", without("num_batches_tracked")),
    "masks": ("swin", with_more(swin__encoder__layers__0__blocks__0__attn_mask=ONE)),
    "indices": ("swin", with_more(swin__encoder__layers__0__blocks__0__attention__self__relative_position_index=ONE)),
    "counts of operations": ("timm", with_more(timm_model__blocks__0__total_ops=ONE)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_a_model_computes_itself_may_be_missing_or_there(saved_models, with_tensors, name):
    base, function = COMPUTED[name]
    model = Classifier.load(str(with_tensors(base, function))).model
    assert_same_weights(model, saved_models / base)
    assert all(value == 0 for name, value in model.named_buffers() if name.endswith("num_batches_tracked"))


@pytest.mark.parametrize("how", ["no head", "another head's name", "half a head", "more classes"])
def test_only_a_head_that_will_be_trained_may_be_missing(saved_models, with_tensors, tmp_path, refused, caplog, how):
    caplog.set_level("INFO", "ftkit")
    if how == "no head":
        folder = tmp_path / "headless"
        ViTModel.from_pretrained(saved_models / "vit", add_pooling_layer=False).save_pretrained(folder)
        PROCESSOR.save_pretrained(folder)
    else:
        folder = with_tensors("vit", {
            "another head's name": lambda tensors: {n.replace("classifier", "fc"): v for n, v in tensors.items()},
            "half a head": without("classifier.bias"),
            "more classes": lambda tensors: tensors | {"classifier.weight": torch.ones(7, 16),
                                                       "classifier.bias": torch.ones(7)},
        }[how])  # fmt: skip
    with refused("get no weights", "classifier.bias", "7" if how == "more classes" else "train one with recipes/"):
        Classifier.load(str(folder))
    for names in (NAMES, ["x", "y"]):
        caplog.clear()
        model = build(folder, names)
        assert_same_weights(model, saved_models / "vit", but="classifier")
        assert "head: new" in caplog.text and "head: kept" not in caplog.text
        assert model.classifier.weight.shape == (len(names), 16) and 0 < model.classifier.weight.std() < 0.5


def test_scripts_refuse_a_model_that_is_not_whole(with_tensors, refused, tmp_path):
    folder = str(with_tensors("vit", without(".layer.1.")))
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    jobs = {
        "predict": ["--model", folder, str(tmp_path / "image.png")],
        "eval": ["--model", folder, "--dataset", "digits"],
        "export": ["--model", folder, "--dataset", "digits", "--format", "torch_export", "--output_dir",
                   str(tmp_path / "out")],
    }  # fmt: skip
    if importlib.util.find_spec("gradio"):
        jobs["demo"] = ["--model", folder, "--space", str(tmp_path / "space")]
    for script, arguments in jobs.items():
        with refused("does not fit ViTForImageClassification", "16 of its 40 tensors"):
            load_recipe_script(script).main(arguments)
    assert not (tmp_path / "out").exists() and not (tmp_path / "space").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_trained_and_saved_in_float32(with_tensors, tmp_path, dtype):
    folder = with_tensors("timm", lambda tensors: {name: value.to(dtype) for name, value in tensors.items()})
    job = train(tmp_path / "run", "--model", folder, "--method", "full", "--learning_rate", 1e-5, "--max_steps", 2,
                "--max_train_samples", 40, "--eval_strategy", "no", "--load_best_model_at_end", "false")  # fmt: skip
    before, after = (load_file(place / "model.safetensors") for place in (folder, job.folder / "model"))
    assert {value.dtype for value in after.values()} == {torch.float32}
    moved = [
        name for name, value in after.items() if "blocks" in name and not torch.equal(value, before[name].float())
    ]
    assert len(moved) == sum("blocks" in name for name in after)


def test_damaged_files_are_one_sentence(saved_models, tmp_path, refused):
    def empty(folder):
        (folder / "model.safetensors").unlink()

    def truncated(folder):
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])

    def pointer(folder):
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")

    def truncated_bin(folder):
        empty(folder)
        torch.save({"a": torch.ones(999)}, folder / "pytorch_model.bin")
        (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:2000])

    def shard_missing(folder):
        empty(folder)
        index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def no_index(folder):
        empty(folder)
        (folder / "model.safetensors.index.json").write_text("[]")

    def code(folder):
        empty(folder)
        torch.save({"a": print}, folder / "pytorch_model.bin")

    def elsewhere(folder):
        (folder / "model.safetensors").rename(folder / "best.safetensors")

    cases = {
        empty: ["no weights", "model.safetensors or pytorch_model.bin"],
        truncated: ["damaged or incomplete", "copy or download it again"],
        pointer: ["damaged or incomplete"],
        truncated_bin: ["damaged or incomplete"],
        shard_missing: ["lacks the weights files model-00001-of-00001.safetensors"],
        no_index: ["model.safetensors.index.json is not a weights index"],
        code: ["would run code", "save them as .safetensors"],
        elsewhere: ["no weights", "set --model", "best.safetensors and --architecture"],
    }
    for damage, words in cases.items():
        folder = shutil.copytree(saved_models / "timm", tmp_path / damage.__name__)
        damage(folder)
        for load in (lambda folder=folder: Classifier.load(str(folder)), lambda folder=folder: build(folder)):
            with refused(damage.__name__, *words):
                load()


def test_files_of_weights_that_are_not_used_are_named(saved_models, tmp_path, caplog):
    caplog.set_level("INFO", "ftkit")
    folder = shutil.copytree(saved_models / "vit", tmp_path / "model")
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    (folder / "tf_model.h5").touch()
    (folder / "optimizer.pt").touch()  # of a checkpoint: no weights of the model
    assert_same_weights(Classifier.load(str(folder)).model, saved_models / "vit")
    assert "weights: from model.safetensors; not used: pytorch_model.bin, tf_model.h5" in caplog.messages


@pytest.fixture
def adapters(saved_models, tmp_path):
    """A folder with adapters, and their head, of the saved ViT."""
    model = AutoModelForImageClassification.from_pretrained(saved_models / "vit")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]))
    model.active_peft_config.base_model_name_or_path = str(saved_models / "vit")
    folder = tmp_path / "adapters"
    Classifier(model, PROCESSOR).save(folder)
    return folder


ADAPTERS = {
    "no head": (without("classifier"), ["missing: base_model.model.classifier"]),
    "one short": (without("layers.0.attention.q_proj.lora_B"), ["missing: base_model.model.vit.layers.0"]),
    "one more": (lambda tensors: tensors | {"base_model.model.vit.layers.9.lora_A.weight": torch.ones(2, 2)},
                 ["fit nowhere: base_model.model.vit.layers.9"]),
    "NaN": (lambda tensors: {name: value * float("nan") for name, value in tensors.items()}, ["NaN"]),
    "other ranks": (lambda tensors: {name: value.repeat(2, 1) if "lora_A" in name else value for name, value in
                                     tensors.items()}, ["size mismatch"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_that_are_not_whole_are_refused(adapters, refused, name):
    function, words = ADAPTERS[name]
    assert Classifier.load(str(adapters)).has_adapters
    file = adapters / "adapter_model.safetensors"
    save_file({key: value.contiguous() for key, value in function(load_file(file)).items()}, file)
    with refused("adapters", *words):
        Classifier.load(str(adapters))


def test_adapters_need_a_whole_base_and_their_file(saved_models, adapters, with_tensors, refused):
    config = json.loads((adapters / "adapter_config.json").read_text())
    short = config | {"base_model_name_or_path": str(with_tensors("vit", without(".layer.1.")))}
    (adapters / "adapter_config.json").write_text(json.dumps(short))
    with refused("changed does not fit", "16 of its 40 tensors"):
        Classifier.load(str(adapters))
    (adapters / "adapter_config.json").write_text(json.dumps(config))
    (adapters / "adapter_model.safetensors").unlink()
    with refused("no adapters", "adapter_model.safetensors"):
        Classifier.load(str(adapters))
    shutil.copy(saved_models / "vit" / "model.safetensors", adapters)
    with refused("adapters (adapter_config.json) and a full model (model.safetensors)", "delete"):
        Classifier.load(str(adapters))


def test_a_folder_that_is_no_saved_model_is_not_looked_up_on_the_hub(tmp_path, refused):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with refused("holds no config.json", "--architecture", tmp_path / "model.safetensors"):
        Classifier.load(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with refused("holds no config.json", "adapters need the config.json of their base model"):
        build(tmp_path)


def test_a_missing_image_processor_is_named(saved_models, tmp_path, refused):
    folder = shutil.copytree(saved_models / "vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    with refused("lacks preprocessor_config.json", "copy it", "save_pretrained"):
        Classifier.load(str(folder))
    with refused("lacks preprocessor_config.json"):
        build(folder)


def test_the_number_of_classes_that_timm_writes_is_the_configs(saved_models, tmp_path):
    folder = shutil.copytree(saved_models / "timm", tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {**(config.get("model_args") or {}), "num_classes": 3}
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_weights(Classifier.load(str(folder)).model, saved_models / "timm")
    build(folder, ["x", "y"])


def test_infinite_weights_are_no_integers(saved_models, with_tensors, refused):
    def infinite(tensors):
        return tensors | {"classifier.weight": torch.full_like(tensors["classifier.weight"], torch.inf)}

    with refused("NaN or infinite values in 1 of", "classifier.weight"):
        Classifier.load(str(with_tensors("vit", infinite)))


def test_pretraining_without_the_last_layers_is_trained_with_them_as_the_head(tmp_path, refused):
    config = BeitConfig(**SMALL, vocab_size=9, use_mask_token=True)
    BeitForMaskedImageModeling(config).save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    with refused("2 of its", "beit.pooler.layernorm.bias", "--head beit.pooler classifier") as refusal:
        build(tmp_path)
    head = refusal.value.fix["head"]
    args = ModelArguments(model=str(tmp_path), head=head)
    built = Classifier.build(args, SingleLabel(NAMES), COLOUR, pretrained=True)
    assert list(find_head(built.model)) == head == ["beit.pooler", "classifier"]
    with refused("4 of its", "saved together"):
        Classifier.load(str(tmp_path))


def test_a_model_folder_of_timm_is_used_as_its_owner_meant_it(tmp_path, refused):
    """As `save_for_hf` writes it; the class names may be a list, or a mapping where numbers are missing."""
    save_for_hf(timm.create_model("test_resnet", num_classes=3), tmp_path, model_config={"label_names": NAMES})
    assert Classifier.load(str(tmp_path)).task.names == NAMES
    config = json.loads((tmp_path / "config.json").read_text())

    def change(**values):
        (tmp_path / "config.json").write_text(json.dumps(config | values))

    change(label_names={"0": "x", "1": "y", "2": "z"}, model_args={"pretrained": True, "num_classes": 3})
    assert Classifier.load(str(tmp_path)).task.names == ["x", "y", "z"]
    change(label_names={"x": "an ant"})
    with refused("label_names", "by their numbers"):
        build(tmp_path)
    change(num_classes=0, label_names=None)
    with refused("without a head"):
        Classifier.load(str(tmp_path))


def test_settings_that_no_tensor_shows_are_said(saved_models, caplog):
    args = ModelArguments(model=str(saved_models / "vit"), model_args={"num_attention_heads": 4})
    Classifier.build(args, SingleLabel(NAMES), COLOUR, pretrained=True)
    assert "model_args: the weights were trained with num_attention_heads: 2 instead of 4" in caplog.messages


def test_what_a_run_sets_is_no_argument_of_the_model(saved_models, refused):
    for name, argument in (("vit", "output_hidden_states"), ("timm", "pretrained")):
        with refused("model_args", argument):
            args = ModelArguments(model=str(saved_models / name), model_args={argument: True})
            Classifier.build(args, SingleLabel(NAMES), COLOUR, pretrained=True)


def test_a_processor_that_takes_no_images_is_refused(saved_models, tmp_path, refused):
    folder = shutil.copytree(saved_models / "vit", tmp_path / "vit")
    processor = {"image_processor_type": "WhisperFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with refused("a WhisperFeatureExtractor, takes no images"):
        Classifier.load(str(folder))
