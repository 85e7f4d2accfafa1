"""Try a model in the browser: upload, paste or photograph an image, or draw a digit, and see what it is taken for.

    python recipes/demo.py --model runs/digits-convnet-scratch
    python recipes/demo.py --model path/to/model --port 8000
    python recipes/demo.py --model runs/digits-convnet-scratch --space spaces/digits

It needs `pip install -e '.[demo]'`. The page is for this machine alone unless `--host` says otherwise, and asks
nothing of the network. There is a pad to draw on where the classes are the ten digits or the images are small and
grey. The pixels are those of recipes/eval.py.

The last line writes a folder to push as a Space of the Hub: the same page, which does not need ftkit, with the model
in it, or with its name on the Hub, `--hub_model_id`.
"""

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from ftkit.config import local_model
from ftkit.config.scripts import ScriptParser
from ftkit.errors import ConfigError, UserError, user_errors
from ftkit.models.checks import check_saved


def boolean(text: str) -> bool:
    """true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() == "true"


def port(text: str) -> int:
    """A number of a TCP port."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 65535")
    return int(text)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: an option is unknown, or has no value that it can take.
        ConfigError: with what is wrong otherwise.
    """
    parser = ScriptParser(prog="demo.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a folder (of a model, or of a run) or a name on the Hub")
    parser.add_argument("--revision", help="a branch, tag or commit of the model on the Hub")
    parser.add_argument(
        "--trust_remote_code",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="run code that comes with the model; only for a source that you trust",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=port, help="default: the first that is free from 7860 on")
    parser.add_argument("--space", type=Path, help="write a Space into this new folder instead")
    parser.add_argument("--hub_model_id", help="where the Space finds the model; it is copied into it otherwise")
    args = parser.parse_args(arguments)
    errors = check_saved(args.model)
    if args.space is not None and args.space.exists():
        errors.append(f"space: {args.space} exists: give the name of a new folder")
    if args.hub_model_id is not None and args.space is None:
        errors.append(f"hub_model_id: {args.hub_model_id} is for a Space: give --space a new folder")
    if errors:
        raise ConfigError(errors)
    return args


def main(arguments: list[str]) -> None:
    """Start the page, or write the Space, that `arguments`, a command line without the program's name, ask for."""
    args = parse_arguments(arguments)
    if args.space is None:
        check_address(args.host, args.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the demo needs gradio: pip install -e '.[demo]'") from None

    import transformers

    from ftkit.demo import Demo, build_page, serve
    from ftkit.models.classifier import Classifier

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    demo = Demo(Classifier.load(args.model, args.revision, args.trust_remote_code))
    fit = demo.fit(trained_on(args.model))
    if args.space is not None:
        space(args, demo, fit)
        return
    page = build_page(title(args.model), demo, demo.classifier.channels, fit)
    serve(page, server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True)
    print(f"{page.local_url}  (Ctrl-C stops it)", flush=True)
    page.block_thread()


def check_address(host: str, port: int | None) -> None:
    """That the page can be served there; gradio would try for minutes.

    Raises:
        UserError: the port is taken, or the host is no address of this machine.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port or 0))
    except OSError as error:
        where = f"{host}:{port}" if port else host
        raise UserError(f"cannot listen on {where}: {error.strerror}: give another --port or --host") from None


def space(args: argparse.Namespace, demo: Any, fit: Any) -> None:
    """Write a Space for a `Demo`, with the `fit` of its drawings.

    Raises:
        UserError: the name cannot be one on the Hub or is of adapters, or the Space would run code that nobody has
            allowed.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from ftkit.demo import write_space

    local = local_model(args.model) is not None
    name, own_code = args.hub_model_id, demo.classifier.model.config.model_type.startswith("ftkit_")
    if name is None and not local:
        name = args.model
    if name is not None:
        if demo.classifier.has_adapters:
            raise UserError(
                f"hub_model_id: {args.model} holds adapters, which a Space cannot load by name: leave {name} out, and "
                "they become a part of the model that is copied into it"
            )
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"hub_model_id: {error}") from None
        if own_code and not args.trust_remote_code:
            raise UserError(
                f"hub_model_id: the Space would run the code of {name}, a model of ftkit's own: allow it with "
                "--trust_remote_code true"
            )
    options = {"trust_remote_code": True} if own_code or args.trust_remote_code else {}
    if name is not None and args.revision is not None:
        options["revision"] = args.revision
    write_space(args.space, name or title(args.model), demo, fit, name, options, license_of(args.model))
    print(f"{args.space}: try it with `python {args.space / 'app.py'}`, push it with `hf upload <user>/<name> "
          f"{args.space} --repo-type space`")  # fmt: skip


def title(model: str) -> str:
    """What the model is called: by the folder of the run that it lies in, where it does."""
    folder = local_model(model)
    if folder is None:
        return model
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def trained_on(model: str) -> str | None:
    """The name of the data that a run was trained on; None for what is no run."""
    folder = local_model(model)
    record = folder and folder.resolve().parent / "run.json"
    return json.loads(record.read_text(encoding="utf-8")).get("dataset") if record and record.is_file() else None


def license_of(model: str) -> str | None:
    """The license that the model's card names; None where there is no card, or none in it."""
    from huggingface_hub import ModelCard

    folder = local_model(model)
    try:
        return ModelCard.load(folder / "README.md" if folder else model).data.license
    except (OSError, ValueError):  # no such file, here or on the Hub, or no metadata in it
        return None


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
