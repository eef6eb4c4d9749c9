"""Runs a script of a solo-learn checkout with CARP among its methods:

cd solo-learn && python -m carp_plugin main_pretrain.py --config-path scripts/pretrain/cifar --config-name carp.yaml

On a machine without a card ``tensor.cuda()`` leaves the tensor where it is, so that the host's k-NN runs there too.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from carp_plugin.errors import UserError
from carp_plugin.settings.recipes import folder
from carp_plugin.terminal import lasting_streams

HELP = """\
usage: python -m carp_plugin SCRIPT.py [arguments of the script]

Runs a script of a solo-learn checkout with CARP among its methods. Configurations take in the shared parts of our
recipes by name, as the recipes do. For example:

  cd solo-learn
  python -m carp_plugin main_pretrain.py --config-path {recipes} --config-name carp.yaml

On several devices: torchrun --standalone --nproc-per-node=N -m carp_plugin main_pretrain.py ...

Without a checkout, on the installed solo-learn:

  carp-pretrain   pretrains CARP, or any method of solo-learn
  carp-linear     evaluates a pretrained backbone by a linear classifier
  carp-finetune   trains all of it with labels
  carp-knn        evaluates a checkpoint by its nearest neighbours, student and teacher
  carp-evaluate   runs other protocols on its frozen features
  carp-umap       draws the features of a checkpoint, student and teacher
  carp-compare    trains methods side by side and shows them on one page
"""


def main() -> None:
    """Registers CARP, then runs the script named first as ``python SCRIPT`` would."""
    asked = sys.argv[1] if len(sys.argv) > 1 else None
    if asked in (None, "-h", "--help"):
        said = HELP.format(recipes=folder("pretrain/cifar"))
        print(said, end="", file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    script = Path(sys.argv[1])
    if not script.is_file():
        raise UserError(
            f"{script} does not exist (from {Path.cwd()}); give the path of a solo-learn script."
        )
    # python puts the script's folder first on the path; a checkout's own `solo` must win over an installed one
    sys.path.insert(0, str(script.resolve().parent))
    _prepare()
    sys.argv = [str(script), *sys.argv[2:]]
    with lasting_streams():
        runpy.run_path(str(script), run_name="__main__")


def _prepare() -> None:
    import torch  # here: help and a misspelt script are to be quick

    from carp_plugin import register
    from carp_plugin.settings import hydra_defaults

    register()
    hydra_defaults.install()
    if not torch.cuda.is_available():
        # main_knn.py and main_umap.py of the host move to a card whatever the machine has.
        torch.Tensor.cuda = _stay  # type: ignore[assignment, method-assign]


def _stay(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``tensor.cuda()`` does where there is no card."""
    return tensor


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
