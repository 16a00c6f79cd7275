"""Who may import whom, what may never be called, and names that would shadow others."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["run_pipeline", "preprocessing", "train", "evaluate", "analyze"]
OTHERS = ["compare", "infer", "visualize"]  # none is a stage
SOURCES = (
    [ROOT / f"{name}.py" for name in SCRIPTS + OTHERS]
    + sorted((ROOT / "ctseg").rglob("*.py"))
    + sorted((ROOT / "models").rglob("*.py"))
)


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports (outside TYPE_CHECKING blocks when only the top level counts)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(names: set[str]) -> set[str]:
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
        "types",
    }
    for path in below("models"):
        assert roots(imported(path)) <= allowed, path


@pytest.mark.parametrize("wing", ["scans", "scoring", "reporting"])
def test_only_learning_knows_torch(wing):
    for path in below(f"ctseg/{wing}"):
        assert not roots(imported(path)) & {"torch", "monai"}, path
    for path in below(f"ctseg/{wing}"):
        assert not any(name.startswith("ctseg.learning") for name in imported(path)), path


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
    """A second, careless parser ends in a traceback where the first has an answer. Benchmarks compare with foreign readers on purpose."""
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
            if (
                text.startswith(("np.random.", "numpy.random.")) and "(" not in text
            ):  # not the methods of a generator made there
                assert text.split(".")[-1] in ("default_rng", "Generator", "SeedSequence"), (
                    f"{name}:{node.lineno} uses the global generator"
                )


def test_libraries_do_not_print():
    for path in below("ctseg") + below("models"):
        if path.name == "cli.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    code = f"import sys, runpy; sys.argv = ['{script}.py', '--help']\ntry:\n    runpy.run_path('{script}.py', run_name='__main__')\nexcept SystemExit as end:\n    assert not end.code, end.code\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"infer": "--checkpoint", "visualize": "--stills"}.get(script, "--workspace") in done.stdout
