"""Check the model of a finished run, and push it to the Hub with its card and its report.

    python recipes/push.py runs/digits-convnet-scratch --hub_model_id me/digits
    python recipes/push.py runs/digits-convnet-scratch --verify

First a process without ftkit loads the model offline, and must reproduce the logits of the evaluation. `--verify`
pushes nothing: it compares the numbers of the card with the stored predictions, and with `--hub_model_id` also those
of the card on the Hub. The token comes from `hf auth login` or HF_TOKEN.
"""

import argparse
import sys
from pathlib import Path

from ftkit.config.scripts import ScriptParser
from ftkit.errors import UserError, user_errors


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line of this script."""
    parser = ScriptParser(prog="push.py", description="Push the model of a finished run.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--hub_model_id", help="its name on the Hub (default: from the recipe, else the folder's)")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--hub_revision", help="a branch to push to, created if it is missing")
    parser.add_argument("--verify", action="store_true", help="push nothing; compare card and predictions")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Push or verify; `arguments` is the command line without the program's name."""
    given = parse_arguments(arguments)

    import logging

    from ftkit.hub.card import read_config

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout, force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    config = read_config(given.run)
    if given.verify:
        verify(given.run, given.hub_model_id)
        return

    from ftkit.hub.push import check_login, push

    check_login()
    name = given.hub_model_id or config.get("hub_model_id") or given.run.absolute().name
    private = given.hub_private_repo or config.get("hub_private_repo")
    print(push(given.run, name, private, given.hub_revision or config.get("hub_revision")))


def verify(run: Path, repo_id: str | None) -> None:
    """Compare the numbers of the card, here and on the Hub, with those of the stored predictions.

    Raises:
        UserError: a number differs, or there is no card.
    """
    from huggingface_hub import ModelCard

    from ftkit.hub.card import verify_card

    if not (run / "model" / "README.md").is_file():
        raise UserError(f"{run / 'model' / 'README.md'}: there is no card: give the folder of a finished run")
    places: list[Path | str] = [run / "model" / "README.md", *([repo_id] if repo_id else [])]
    for place in places:
        if wrong := verify_card(run, ModelCard.load(place)):
            raise UserError(f"{place}:\n" + "\n".join(f"  - {sentence}" for sentence in wrong))
        print(f"{place}: every number follows from the predictions of {run}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
