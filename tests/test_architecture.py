"""Who may import whom, what may never be called, and names that would shadow others."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import file_map

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["run_pipeline", "preprocessing", "train", "evaluate", "analyze"]
OTHERS = ["compare", "infer", "visualize"]  # none is a stage
SOURCES = (
    [ROOT / f"{name}.py" for name in SCRIPTS + OTHERS]
    + sorted((ROOT / "ctseg").rglob("*.py"))
    + sorted((ROOT / "models").rglob("*.py"))
)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def roots(names: frozenset[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def below(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_stages_do_not_import_each_other():
    for name in SCRIPTS[1:] + OTHERS:
        assert not roots(imported(ROOT / f"{name}.py")) & {*SCRIPTS, *OTHERS}, name


def test_library_imports_neither_stages_nor_networks():
    for path in below("ctseg"):
        assert not roots(imported(path)) & {*SCRIPTS, *OTHERS, "models"}, path


def test_networks_import_only_torch():
    allowed = {
        "torch",
        "models",
        "__future__",
        "math",
        "dataclasses",
        "difflib",
        "collections",
        "typing",
        "functools",
        "itertools",
        "bisect",
    }
    for path in below("models"):
        assert roots(imported(path)) <= allowed, path


# From the ground up. A room may import from rooms below its own floor only.
FLOORS = [
    {"errors"},
    {
        "artifacts",
        "config",
        "config_file",
        "laterality",
        "outputs",
        "palette",
        "processes",
        "structure_names",
        "tables",
        "tasks",
        "typed_values",
    },
    {"geometry"},
    {"manifest"},
    {"scans", "scoring"},
    {"anatomy", "datasets"},
    {"preparation", "runtime"},
    {"prediction"},
    {"learning", "evaluation"},
    {"reporting"},
    {"cli"},
]
GROUND = FLOORS[1]  # single files, which may import each other
IN_SCANS = ["formats", "dicom"]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Module of ctseg -> the modules of ctseg that it imports; `from package import module` is an arrow to
    the module.
    """
    modules = {module_of(path): path for path in below("ctseg")}
    found: dict[str, set[str]] = {name: set() for name in modules if name != "ctseg"}
    for name in found:
        for node in ast.walk(tree_of(modules[name])):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {part if part in modules else node.module for part in parts}
        found[name] &= set(found) - {name}
    return found


def test_arrows_go_down() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for module, others in arrows().items():
        room = module.split(".")[1]
        for other in others:
            its = other.split(".")[1]
            assert room == its or floor[its] < floor[room] or {room, its} <= GROUND, (
                f"{module} imports {other}"
            )


def test_formats_know_no_dicom() -> None:
    for module, others in arrows().items():
        here = next(
            (number for number, part in enumerate(IN_SCANS) if f"ctseg.scans.{part}" in module), len(IN_SCANS)
        )
        for other in others:
            if other.startswith("ctseg.scans.") and module.startswith("ctseg.scans."):
                there = next(
                    (n for n, part in enumerate(IN_SCANS) if f"ctseg.scans.{part}" in other), len(IN_SCANS)
                )
                assert there <= here, f"{module} imports {other}"


def test_no_circle_of_imports() -> None:
    left = {module: set(others) for module, others in arrows().items()}
    while free := [module for module, others in left.items() if not others & set(left)]:
        for module in free:
            del left[module]
    assert not left, f"imports run in a circle among {sorted(left)}"


@pytest.mark.parametrize(
    "room", ["geometry", "scans", "scoring", "anatomy", "datasets", "preparation", "evaluation", "reporting"]
)
def test_only_the_rooms_of_networks_know_torch(room):
    for path in below(f"ctseg/{room}"):
        assert not roots(imported(path)) & {"torch", "monai"}, path


def test_the_file_map_is_true():
    page = file_map.PAGE.read_text(encoding="utf-8")
    assert file_map.with_map(page) == page, "run python benchmarks/file_map.py"
    assert all(file_map.first_sentence(path) for path in SOURCES if path.read_text(encoding="utf-8").strip())


def test_scoring_reads_no_files_and_reporting_no_networks():
    for path in below("ctseg/scoring"):
        assert not any(
            name.startswith(("ctseg.artifacts", "ctseg.scans", "ctseg.reporting", "pathlib"))
            for name in imported(path)
        ), path


@pytest.mark.parametrize(
    ("package", "addresses"),
    [
        ("nibabel", {"ctseg/scans/formats/nifti.py"}),
        ("SimpleITK", {"ctseg/geometry/volume.py"}),
        ("matplotlib", {"ctseg/reporting"}),
        ("pandas", {"ctseg/tables.py"}),
        ("pydicom", {"ctseg/scans/dicom/"}),
        ("highdicom", {"ctseg/scans/dicom/dicom_seg", "ctseg/scans/dicom/dicom_codes"}),
    ],
)
def test_each_foreign_package_has_one_address(package, addresses):
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        if package in roots(imported(path)):
            assert any(name.startswith(address) for address in addresses), f"{name} imports {package}"


OPENERS = {"ReadImage", "ImageFileReader", "ImageSeriesReader", "from_filename", "load", "dcmread", "segread"}


def test_files_are_opened_by_the_checked_readers_alone():
    """A second, careless parser ends in a traceback where the first has an answer.

    Benchmarks compare with foreign readers on purpose.
    """
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(tree_of(path)):
            called = ast.unparse(node.func).split(".") if isinstance(node, ast.Call) else [""]
            if called[-1] in OPENERS and (
                called[0] in ("nib", "nibabel") or called[-1] not in ("load", "from_filename")
            ):
                assert called[-1] in ("dcmread", "segread") and name.startswith("ctseg/scans/dicom/"), (
                    f"{name}:{node.lineno} opens a file itself"
                )


FORBIDDEN_IMPORTS = {"joblib", "yaml", "urllib", "requests", "http", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "system", "extractall", "popen"}


def test_nothing_is_executed_downloaded_or_unpickled():
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        found = roots(imported(path)) & (FORBIDDEN_IMPORTS | {"pickle"})
        # torch.load raises pickle.UnpicklingError for unsafe content: the one place that may name it
        assert not found or (name == "ctseg/runtime/checkpoints.py" and found == {"pickle"}), (
            f"{name}: {found}"
        )
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "eval" and isinstance(node.func, ast.Attribute):
                continue  # network.eval()
            assert called not in FORBIDDEN_CALLS, f"{name}:{node.lineno} calls {called}"
            for keyword in node.keywords:
                risky = (
                    keyword.arg in ("allow_pickle", "shell", "force")
                    and getattr(keyword.value, "value", None) is True
                ) or (keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is not True)
                assert not risky, f"{name}:{node.lineno} passes {keyword.arg}"
            text = ast.unparse(node.func)
            if text == "torch.load":
                assert (
                    any(keyword.arg == "weights_only" for keyword in node.keywords)
                    and name == "ctseg/runtime/checkpoints.py"
                ), f"{name}:{node.lineno}"
            # not the methods of a generator made there
            if text.startswith(("np.random.", "numpy.random.")) and "(" not in text:
                assert text.split(".")[-1] in ("default_rng", "Generator", "SeedSequence"), (
                    f"{name}:{node.lineno} uses the global generator"
                )


def test_libraries_do_not_print():
    for path in below("ctseg") + below("models"):
        if path.name == "cli.py":
            continue
        for node in ast.walk(tree_of(path)):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), (
                f"{path}:{getattr(node, 'lineno', 0)}"
            )


def test_no_file_shadows_the_standard_library():
    names = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if path.is_dir()
    }
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("script", [*SCRIPTS, "infer", "visualize"])
def test_help_needs_no_torch(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}.py', '--help']\ntry:\n    "
        f"runpy.run_path('{script}.py', run_name='__main__')\nexcept SystemExit as end:\n    "
        "assert not end.code, end.code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"infer": "--checkpoint", "visualize": "--stills"}.get(script, "--workspace") in done.stdout
