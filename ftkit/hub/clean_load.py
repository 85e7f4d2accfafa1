"""A script with its own process: loads a model as a user without ftkit would, and classifies files.

It reads a JSON object from standard input: `folder`, `files`, `trust_remote_code`. It writes another to standard
output: `labels`; `logits`, a row for each file, in the order of `labels`; and `missing`, the parameters and buffers
that the model's files lack.
"""

import json
import sys
from pathlib import Path

# Makes `import ftkit` fail, even if it is installed; documented by Python, but missing in its type stubs.
sys.modules["ftkit"] = None  # type: ignore[assignment]


def main() -> None:
    """Load, classify, answer."""
    job = json.load(sys.stdin)

    import torch
    from PIL import Image
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

    folder, code = job["folder"], {"trust_remote_code": job["trust_remote_code"]}
    missing: list[str] = []
    if (Path(folder) / "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights

        base, config = PeftConfig.from_pretrained(folder).base_model_name_or_path, AutoConfig.from_pretrained(folder)
        model = AutoModelForImageClassification.from_pretrained(
            base, config=config, ignore_mismatched_sizes=True, **code
        )
        model = PeftModel.from_pretrained(model, folder)
        needed = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        missing = sorted(needed - load_peft_weights(folder, device="cpu").keys())
        model = model.merge_and_unload()
    else:
        model, loaded = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, **code)
        missing = sorted(loaded["missing_keys"])
    processor = AutoImageProcessor.from_pretrained(folder, **code)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    options = {"image_processor": processor, "function_to_apply": "none", "top_k": len(labels), "device": -1}
    classify = pipeline("image-classification", model, **options)
    logits = []
    with torch.inference_mode():
        for file in job["files"]:
            with Image.open(file) as image:
                scores = {answer["label"]: answer["score"] for answer in classify(image)}
            logits.append([scores[label] for label in labels])
    json.dump({"labels": labels, "logits": logits, "missing": missing}, sys.stdout)


if __name__ == "__main__":
    main()
