"""CARP (NeurIPS 2023) as a method of the self-supervised library solo-learn.

``register()`` puts ``"carp"`` and others among the host's methods; ``python main_pretrain.py --config-name carp.yaml``
trains it.
"""

__version__ = "0.1.0"


def register() -> None:
    """Puts CARP and the systems that it is compared with into the host's ``METHODS``; again, it changes nothing.

    Raises:
        HostError: if solo-learn is not installed, or is a release that is not supported.
    """
    from carp_plugin.host import METHODS
    from carp_plugin.methods.carl import CARL
    from carp_plugin.methods.carp import CARP
    from carp_plugin.methods.infomin import InfoMin
    from carp_plugin.methods.pirl import PIRL
    from carp_plugin.methods.simclrv2 import SimCLRV2
    from carp_plugin.methods.supervised import Supervised

    METHODS.update(
        carp=CARP, carl=CARL, simclrv2=SimCLRV2, supervised=Supervised, pirl=PIRL, infomin=InfoMin
    )
