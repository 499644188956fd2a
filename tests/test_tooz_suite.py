"""tooz' own tests of coordinators, as its wheel brings them, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from lock_tools import serving

# Its tests import some of its other drivers.
NEEDED = ("tooz", "fixtures", "testtools", "etcd3gw", "pymemcache", "redis", "sysv_ipc")

# They skip themselves: the one is for drivers whose members vanish unless the program beats, the
# other for three drivers that it names.
SKIPPED = {"test_timeout", "test_watch_join_group_disappear"}


def outcomes(report: Path) -> dict[str, str]:
    """passed, skipped, failure or error, by the name of the test."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {case.attrib["name"]: next((one.tag for one in case), "passed") for case in cases}


@pytest.mark.timeout(600)
def test_their_tests_pass(tmp_path: Path) -> None:
    for package in NEEDED:
        pytest.importorskip(package, reason=f"no {package}: pip install 'dlock[test-hpc]'")
    report = tmp_path / "report.xml"
    with serving(session_ttl_ms=10_000) as service:
        # The executor with a thread stops slowly (a second each); test_tooz_driver.py uses it.
        url = f"dlock://{service.address}?executor=synchronous"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider",
             f"--rootdir={tmp_path}", f"--junitxml={report}", "--timeout=60",
             "--pyargs", "tooz.tests.test_coordination"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=550, check=False,
            cwd=tmp_path, env={**os.environ, "TOOZ_TEST_URL": url})
    assert report.exists(), done.stdout + done.stderr
    found = outcomes(report)
    bad = {name for name, outcome in found.items() if outcome in ("failure", "error")}
    assert not bad, done.stdout[-20000:]
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = {name for name, outcome in found.items() if outcome == "skipped"}
    assert skipped <= SKIPPED
    locks = {name for name in found if "lock" in name or "acquire" in name}
    assert len(locks) >= 25
    assert not locks & skipped
