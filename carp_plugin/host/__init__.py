"""The only door to solo-learn: picks the installed release and offers one cfg-based vocabulary.

Nothing outside this folder imports ``solo``. ``current.py`` re-exports solo-learn's main branch
(1.0.6 and later, Hydra configs); ``pypi/`` brings the release on PyPI (1.0.2, argparse keywords) to
the same names. ``HOST`` says which one answers.
"""

from carp_plugin.host.detect import HOST, HostInfo

if HOST.kind == "current":
    from carp_plugin.host.current import *  # noqa: F403
    from carp_plugin.host.current import __all__ as _vocabulary
else:
    from carp_plugin.host.pypi import *  # type: ignore[assignment]  # noqa: F403
    from carp_plugin.host.pypi import __all__ as _vocabulary

__all__ = ["HOST", "HostInfo", *_vocabulary]
