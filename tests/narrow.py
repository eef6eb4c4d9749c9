"""ResNets of an eighth of their width: most of a tiny training is else the writing of 45 MB of weights, fourfold."""

from contextlib import contextmanager
from typing import Iterator
from unittest.mock import patch

from torchvision.models.resnet import ResNet

#: Of the 64, 128, 256 and 512 channels of the four stages.
FRACTION = 8


@contextmanager
def narrow_resnets() -> Iterator[None]:
    """While entered, every ResNet that is built has narrow blocks, behind the first convolution as it always is.

    Both hosts build their ResNets by torchvision. A ResNet-18 has 0.2 million parameters then, and 64 features.
    """
    make_layer = ResNet._make_layer

    def narrow(self: ResNet, block: type, planes: int, *args: int, **kwargs: bool):
        return make_layer(self, block, planes // FRACTION, *args, **kwargs)

    with patch.object(ResNet, "_make_layer", narrow):
        yield
