"""What holds for every script: names that cannot be shown, interruptions, workers of a run that is gone, the
log.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import infer
from ctseg import artifacts, cli
from ctseg.errors import ResourceError, UsageError

ROOT = Path(__file__).parent.parent


def python(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="latin-1",
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_ends_no_run(encoding):
    code = r"""
from ctseg import cli
def main(argv):
    cli.log_to_terminal()
    for name in ("M\udcfcller", "\u4e2d\u6587", "\xfc"):
        cli.LOG.warning("case %s", name)
        print(name)
    return 0
raise SystemExit(cli.guarded(main, None))"""
    done = python(code, PYTHONIOENCODING=encoding)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0 and not err and out.count("\n") == 6


def test_names_in_other_bytes_reach_the_log_file(tmp_path, monkeypatch):
    workspace = artifacts.Workspace(tmp_path)
    monkeypatch.setattr(cli, "LOG", logging.getLogger("ctseg.test_cli"))
    cli.start_log(workspace)
    cli.LOG.info("case %s", os.fsdecode(b"M\xfcller"))
    for handler in list(cli.LOG.handlers):
        handler.close()
    assert "case M\\udcfcller" in workspace.log.read_text(encoding="utf-8")


def test_a_pipe_in_the_place_of_the_log_is_refused_at_once(tmp_path):
    workspace = artifacts.Workspace(tmp_path)
    workspace.log.parent.mkdir()
    os.mkfifo(workspace.log)
    with pytest.raises(ResourceError, match="pipeline"):
        cli.start_log(workspace)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("swallowed", [False, True])
def test_an_interruption_counts_even_where_a_library_swallows_it(number, code, swallowed, capsys):
    def main(argv):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException:
            if not swallowed:
                raise
        return 0

    before = signal.getsignal(number)
    assert cli.guarded(main, None) == code and "run the same command again" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(13, "Permission denied", "/data/secret"),
            "ERROR PERMISSION case=- file=secret: '/data/secret' cannot be used: permission denied. Fix: ",
        ),
        (
            OSError(28, "No space left on device"),
            "ERROR DISK_FULL case=- file=-: no space left on device. Fix: ",
        ),
        (
            FileNotFoundError(2, "No such file or directory", b"/data/M\xfcller"),
            "ERROR FILE_MISSING case=- file=M\\xfcller: ",
        ),
    ],
)
def test_what_the_system_says_is_a_line_and_exit_code_6(error, words, capsys):
    def main(argv):
        raise error

    assert cli.guarded(main, None) == 6
    assert capsys.readouterr().err.startswith(words)


def test_what_nobody_foresaw_is_one_line_without_a_log_too(monkeypatch, capsys):
    def main(argv):
        raise ZeroDivisionError("of the patient Miller")

    monkeypatch.setattr(cli, "log_file", lambda: None)
    assert cli.guarded(main, None) == 1
    said = capsys.readouterr().err
    assert said.startswith("ERROR INTERNAL case=- file=-: ZeroDivisionError in test_cli.py, line ")
    assert said.count("\n") == 1 and "Miller" not in said and "please report it with this line" in said


@pytest.mark.parametrize(
    ("words", "hint"), [(["--seed", "1e3"], False), (["--seed"], False), (["--sed", "3"], True)]
)
def test_only_an_unknown_option_gets_a_hint_at_another_one(words, hint):
    with pytest.raises(UsageError) as caught:
        cli.parser("x.py", "").parse_args(words)
    assert ("did you mean '--seed'" in str(caught.value)) == hint


WORKERS = """
import os, time
from ctseg.processes import worker_pool
if __name__ == "__main__":
    pool = worker_pool(1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
"""


def gone(pid: int, seconds: float = 15) -> bool:
    """Whether a process that is no child of ours ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert gone(worker)


@pytest.mark.skipif(os.name != "posix", reason="process ids of parents")
def test_a_script_stops_when_the_run_it_is_part_of_is_gone():
    code = (
        "import time\nfrom ctseg import cli\nraise SystemExit(cli.guarded(lambda argv: "
        "time.sleep(60) or 0, None))"
    )
    done = python(code, CTSEG_PARENT="1")  # not the process that started it
    _, err = done.communicate(timeout=30)
    assert done.returncode == 143 and err.startswith("Terminated.")


def test_an_option_given_again_loses_nothing() -> None:
    parser = infer.build_parser()
    again = parser.parse_args(
        ["--input", "a", "--output", "o", "--checkpoint", "1", "2", "--checkpoint", "3"]
    )
    assert again.checkpoint == [Path("1"), Path("2"), Path("3")]  # the default is not among them
    assert parser.parse_args(["--input", "a", "--output", "o", "--checkpoint", "1"]).checkpoint == [Path("1")]
    assert parser.parse_args(["--input", "a", "--input", "a", "--output", "o"]).input == Path("a")
    with pytest.raises(UsageError, match="--input is given twice: a and b"):
        parser.parse_args(["--input", "a", "--input", "b", "--output", "o"])
    with pytest.raises(UsageError, match="--structures is given twice"):
        cli.parser("x.py", "").parse_args(["--structures", "liver", "--structures", "spleen"])
