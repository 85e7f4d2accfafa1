"""Try a model in the browser: upload, paste or photograph an image, or draw a digit, and see the likeliest classes.

    python recipes/demo.py --model runs/digits-convnet-scratch
    python recipes/demo.py --model path/to/model --port 8000
    python recipes/demo.py --model runs/digits-convnet-scratch --space spaces/digits

It needs `pip install -e '.[demo]'`. Only this machine can open the page, unless `--host` says otherwise; the page
loads nothing from the network. It has a drawing pad if the classes are the ten digits or the images are small and
grey. Images are preprocessed as in recipes/eval.py.

`--space` writes a folder to push as a Space of the Hub: the same page, without ftkit, with a copy of the model or,
with `--hub_model_id`, its name on the Hub.
"""

import argparse
import os
import sys
from pathlib import Path

from ftkit.config.scripts import ScriptParser, boolean, port
from ftkit.demo.address import check_address
from ftkit.errors import ConfigError, UserError, user_errors
from ftkit.models.checks import check_saved


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: an option is unknown, or its value is invalid.
        ConfigError: there are other errors; lists all of them.
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
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: only this machine)")
    parser.add_argument("--port", type=port, help="default: the first free one from 7860 on")
    parser.add_argument("--space", type=Path, help="write a Space into this new folder instead of serving")
    parser.add_argument("--hub_model_id", help="the model that the Space loads (default: its own copy)")
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
    """Serve the page or write the Space; `arguments` is the command line without the program's name."""
    args = parse_arguments(arguments)
    if args.space is None:
        check_address(args.host, args.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the demo needs gradio: pip install -e '.[demo]'") from None

    import transformers

    from ftkit.demo.answers import Demo, title, trained_on
    from ftkit.demo.page import build_page, serve
    from ftkit.demo.space import source_of, write_space
    from ftkit.models.classifier import Classifier

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    demo = Demo(Classifier.load(args.model, args.revision, args.trust_remote_code))
    fit = demo.fit(trained_on(args.model))
    if args.space is not None:
        source = source_of(args.model, demo.classifier, args.hub_model_id, args.revision, args.trust_remote_code)
        write_space(args.space, source.hub_model_id or title(args.model), demo, fit, source)
        print(f"{args.space}: try it with `python {args.space / 'app.py'}`, push it with `hf upload <user>/<name> "
              f"{args.space} --repo-type space`")  # fmt: skip
        return
    page = build_page(title(args.model), demo, demo.classifier.channels, fit)
    serve(page, server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True)
    print(f"{page.local_url}  (Ctrl-C stops it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
