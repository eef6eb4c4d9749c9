"""What setup.cfg cannot say: the recipes of scripts/ are installed as carp_plugin/scripts. All else stands there."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["carp_plugin*"]), "carp_plugin.scripts"],
    package_dir={"carp_plugin.scripts": "scripts"},
)
