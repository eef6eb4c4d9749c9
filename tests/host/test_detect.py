"""Which solo-learn is taken for which, and the sentence where there is none that fits."""

import subprocess
import sys

import pytest

from carp_plugin.errors import HostError
from carp_plugin.host import detect
from tests.run_cli import ROOT

CURRENT = {
    "utils/misc.py": "def omegaconf_select(): ...",
    "methods/base.py": "import lightning.pytorch as pl",
}
RELEASE = {
    "utils/misc.py": "",
    "methods/base.py": "        self.encoder = self.base_model()",
    "methods/dali.py": "",
}
TOO_OLD = {"utils/misc.py": "", "methods/base.py": "import pytorch_lightning as pl"}


def package(root, files):
    for name, text in {"__init__.py": "", **files}.items():
        path = root / "solo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "solo"


@pytest.fixture
def found(monkeypatch):
    """Makes `import solo` find a given package, or none."""

    def find(location):
        class Spec:
            submodule_search_locations = [str(location)]

        spec = None if location is None else Spec
        monkeypatch.setattr(detect.importlib.util, "find_spec", lambda name: spec)

    return find


def test_no_host_says_what_to_install(found):
    found(None)
    with pytest.raises(HostError, match="not installed; run `make setup`.*solo-learn==1.0.2"):
        detect.detect()


def test_another_or_too_old_package_says_what_to_install(found, tmp_path):
    found(package(tmp_path, TOO_OLD))
    with pytest.raises(
        HostError, match="neither solo-learn 1.0.2 nor 1.0.6 or later.*run `make setup`"
    ):
        detect.detect()
    found(package(tmp_path / "other", {}))
    with pytest.raises(HostError, match="another package of that name"):
        detect.detect()


def test_both_shapes_are_told_apart(found, tmp_path):
    found(package(tmp_path / "a", CURRENT))
    assert detect.detect().kind == "current"
    found(package(tmp_path / "b", RELEASE))
    assert detect.detect().kind == "pypi"


def test_a_checkout_tells_its_version_and_commit(found, tmp_path):
    found(package(tmp_path, CURRENT))
    (tmp_path / "setup.py").write_text('setup(version="1.0.7", name="solo-learn")')
    assert detect.detect().version == "1.0.7" and detect.detect().commit is None

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    host = detect.detect()
    assert host.commit == git("rev-parse", "HEAD")
    assert f"solo-learn 1.0.7, commit {host.commit[:7]}" in str(host)


def test_importing_the_plugin_leaves_pytorch_lightning_alone():
    """1.0.2 is imported with stand-ins; afterwards a real pytorch_lightning is itself again."""
    code = (
        "import sys, carp_plugin; carp_plugin.register();"
        "assert 'pl_bolts' not in sys.modules;"
        "mod = sys.modules.get('pytorch_lightning');"
        "assert mod is None or mod.__name__ == 'pytorch_lightning'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
