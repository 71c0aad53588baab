import subprocess
import sys

import pytest

from fused_preact.train.lock import FolderInUse, locked

pytest.importorskip("fcntl", reason="folders are not locked on Windows")

HOLD = """
import sys, pathlib
from fused_preact.train.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_none_after_a_kill(tmp_path, pytestconfig):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=pytestconfig.rootpath
    )
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(FolderInUse, match=r"^expected a folder that no other run writes to, got '.*', where one is at work$"),
            locked(tmp_path),
        ):
            pass
        other.kill()
        other.wait()
        with locked(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()


def test_it_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass
