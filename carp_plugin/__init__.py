"""CARP (NeurIPS 2023) as a method of the self-supervised library solo-learn.

``register()`` puts ``"carp"`` among the host's methods; ``python main_pretrain.py --config-name carp.yaml`` trains it.
"""

__version__ = "0.1.0"


def register() -> None:
    """Puts ``"carp"`` into the host's ``METHODS``; calling it again changes nothing.

    Raises:
        HostError: if solo-learn is not installed, or is a release that is not supported.
    """
    from carp_plugin.host import METHODS
    from carp_plugin.methods.carp import CARP

    METHODS["carp"] = CARP
