"""CARP (NeurIPS 2023) as a method of the self-supervised library solo-learn, and methods that it is compared with.

``register()`` puts ``"carp"`` and the others among the host's methods; ``python main_pretrain.py --config-name
carp.yaml`` trains it.
"""

__version__ = "0.1.0"


def register() -> None:
    """Puts our methods into the host's ``METHODS``; calling it again changes nothing.

    Raises:
        HostError: if solo-learn is not installed, or is a release that is not supported.
    """
    from carp_plugin.host import METHODS
    from carp_plugin.methods.carl import CARL
    from carp_plugin.methods.carp import CARP
    from carp_plugin.methods.infomin import InfoMin
    from carp_plugin.methods.pclv2 import PCLv2
    from carp_plugin.methods.pirl import PIRL
    from carp_plugin.methods.selav2 import SeLav2
    from carp_plugin.methods.simclrv2 import SimCLRV2
    from carp_plugin.methods.supervised import Supervised

    ours = {
        "carl": CARL,
        "infomin": InfoMin,
        "pclv2": PCLv2,
        "pirl": PIRL,
        "selav2": SeLav2,
        "simclrv2": SimCLRV2,
        "supervised": Supervised,
    }
    METHODS.update(carp=CARP, **ours)
