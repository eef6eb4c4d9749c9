"""The rooms of the house: arrows point one way, and each room imports what it may."""

import ast
from pathlib import Path

import pytest

import carp_plugin

PACKAGE = Path(carp_plugin.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Rooms from the ground up; a room may import those before it. What stands in one line may not import its neighbours.
FLOORS = [
    {"errors", "partition", "losses"},
    {"terminal", "host"},
    {"settings"},
    {"data", "methods"},
    {"training"},
    {"evaluation"},
    {"pages"},
    {"compare"},
    {"commands"},
]
#: Above host/ but of no use to it: it is told plain values.
_HOST_MAY_NOT = {"settings", "terminal"}


def room_of(module):
    """The first part of a module's place below the package; the package itself has none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path):
    """(module, names) of every import statement of a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


def floor_of(room):
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    place = path.relative_to(PACKAGE).with_suffix("").parts
    room = place[0]
    if room in ("__init__", "__main__", "configs"):
        return
    for module, names in imports_of(path):
        if module.partition(".")[0] != "carp_plugin":
            continue
        other = room_of(module)
        if not other:  # register() and the version are everybody's
            assert set(names) <= {"register", "__version__"}, names
            continue
        if other == room:
            continue
        assert floor_of(other) < floor_of(room), f"{room} imports {module}"
        assert room != "host" or other not in _HOST_MAY_NOT


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_room_imports_what_it_may(path):
    room = path.relative_to(PACKAGE).parts[0].replace(".py", "")
    named = {module.partition(".")[0] for module, _ in imports_of(path)}
    assert "solo" not in named or room == "host"
    assert "omegaconf" not in named or room in ("host", "settings", "methods")
    assert "hydra" not in named or room in ("settings", "commands")
    assert "pydantic" not in named or room == "settings"
    if room in ("losses", "partition"):
        assert not any(module.startswith("carp_plugin.") for module, _ in imports_of(path)) or (
            {module for module, _ in imports_of(path) if module.startswith("carp_plugin.")}
            <= {"carp_plugin.losses.statistics", "carp_plugin.losses.carp"}
        )


def test_the_root_holds_what_is_everybodys():
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "partition", "terminal"}
    assert (PACKAGE / "py.typed").is_file()


def test_a_command_line_is_read_without_torch():
    """`--help` and a slip are answered in the time of their imports."""
    import subprocess
    import sys

    script = (
        "import sys\n"
        "from carp_plugin.commands.entries import CONFIGURED, FLAGGED\n"
        "for command in (*CONFIGURED, *FLAGGED):\n"
        "    for arguments in (['--help'], ['--config-name', 'carp.yaml', 'max_epoch=3'], ['--kk']):\n"
        "        try: command.main(arguments)\n"
        "        except SystemExit as left: assert left.code in (0, 2), left.code\n"
        "heavy = {'torch', 'lightning', 'solo', 'numpy', 'faiss', 'matplotlib', 'torchvision'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
