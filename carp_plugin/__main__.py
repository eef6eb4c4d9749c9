"""Runs a script of a solo-learn checkout with CARP among its methods:

cd solo-learn && python -m carp_plugin main_pretrain.py --config-path scripts/pretrain/cifar --config-name carp.yaml

On a machine without a card ``tensor.cuda()`` leaves the tensor where it is, so that the host's k-NN runs there too.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from carp_plugin import register
from carp_plugin.errors import UserError


def main() -> None:
    """Registers CARP, then runs the script named first as ``python SCRIPT`` would."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit("usage: python -m carp_plugin SCRIPT.py [arguments of the script]")
    script = Path(sys.argv[1])
    if not script.is_file():
        raise UserError(
            f"{script} does not exist (from {Path.cwd()}); give the path of a solo-learn script."
        )
    # python puts the script's folder first on the path; a checkout's own `solo` must win over an installed one
    sys.path.insert(0, str(script.resolve().parent))
    register()
    if not torch.cuda.is_available():
        # main_knn.py and main_umap.py of the host move to a card whatever the machine has.
        torch.Tensor.cuda = _stay  # type: ignore[assignment, method-assign]
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")


def _stay(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What ``tensor.cuda()`` does where there is no card."""
    return tensor


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
