"""The wheel: what it installs, and that it works away from the repository."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.split("\0")):  # a copy, because setuptools leaves build folders behind
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_the_rooms_under_one_name_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pl_robust"}
    for room, folder in (("callbacks", "callbacks"), ("datamodules", "datamodules"), ("attacks", "pl_robust/attacks")):
        expected = {f"pl_robust/{room}/{path.name}" for path in (ROOT / folder).glob("*.py")}
        assert expected <= set(names)
    assert "pl_robust/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_everything_imports_from_a_fresh_environment_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    zipfile.ZipFile(wheel).extractall(site)  # our own wheel
    # The dependencies come from here; a path in a .pth file does not bring this environment's editable install along.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = """
import importlib, sys
from pathlib import Path
import pl_robust
for room in ("attacks", "callbacks", "datamodules", "losses", "metrics", "models", "modules", "ntk", "transforms"):
    face = importlib.import_module(f"pl_robust.{room}")
    for name in face.__all__:
        getattr(face, name)
assert all(name not in sys.modules for name in ("callbacks", "datamodules", "tests"))
print(Path(pl_robust.__file__).resolve().parent.parent)
"""
    answer = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.strip()) == site.resolve()
