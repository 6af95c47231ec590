"""Everything that is installed or fetched is pinned, hashed, and has a stated reason."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None


def load_audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "requirements/audit.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


audit = load_audit()


@pytest.mark.parametrize("lock", audit.LOCKS)
def test_every_pin_has_hashes_and_names_no_index(lock):
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    pins = audit.read_lock(ROOT / f"requirements/{lock}.txt")
    assert len(pins) > 50 or lock == "openvino"  # one package beside another lock
    assert all(pin.hashes for pin in pins)
    assert len(pins) == len(re.findall(r"^[A-Za-z0-9._-]+==", text, re.MULTILINE))
    assert "http" not in text.replace("httpx", "").replace("geventhttpclient", "").replace("aiohttp", "").split("==")[0]
    assert not re.search(r"^(--(extra-)?index-url|--find-links|-e|git\+)", text, re.MULTILINE)


def test_the_document_lists_what_is_pinned():
    text = audit.DOCUMENT.read_text()
    listed = set(re.findall(r"^\| ([a-z0-9-]+) \| (\S+) \| (?:\d{4}-\d\d-\d\d|unknown) \|$", text, re.MULTILINE))
    pinned = {
        (pin.name, pin.version) for lock in audit.LOCKS for pin in audit.read_lock(ROOT / f"requirements/{lock}.txt")
    }
    assert listed == pinned, "write it again with `make audit`"


def test_no_pin_is_one_that_the_project_is_exposed_to():
    assert audit.exposed(audit.read_advisories(), audit.all_pins()) == []


def test_the_document_has_the_table_of_advisories_as_it_is_now():
    table = "\n".join(audit.table(audit.read_advisories(), audit.all_pins()))
    assert table in audit.DOCUMENT.read_text(), "write it again with `make audit`"
    # What nobody else's server has: the embedded one, and why that is acceptable.
    assert re.search(r"\| tritonserver \| .*CVE-2025-23311.* \| 24\.10 \| not exposed: the HTTP API", table)


@pytest.mark.parametrize(
    ("component", "version", "advisory"),
    [
        ("opencv-python-headless", "4.11.0.86", "CVE-2025-53644"),
        ("aiohttp", "3.13.3", "CVE-2026-22815"),
        ("onnx", "1.20.1", "CVE-2026-27489"),
        ("protobuf", "6.33.4", "CVE-2026-0994"),
    ],
)
def test_a_pin_on_the_list_fails_the_audit(monkeypatch, capsys, component, version, advisory):
    monkeypatch.setattr(audit, "LOCKS", ())
    monkeypatch.setattr(audit, "index_url", str)  # without locks, nobody is asked
    monkeypatch.setattr(audit, "server_pins", lambda: [audit.Pin(component, version, frozenset())])
    assert audit.main(["--check"]) == 1
    assert re.search(rf"{component} {version}: .*{advisory}.*pin another version", capsys.readouterr().out)
    monkeypatch.setattr(audit, "server_pins", lambda: [audit.Pin("another", version, frozenset())])
    assert audit.main(["--check"]) == 0


def test_servers_are_compared_by_month(tmp_path):
    embedded, container = audit.server_pins()
    assert embedded.version == "24.10"
    (fixed_in_26_07,) = [each for each in audit.read_advisories() if "CVE-2026-16497" in each.ids]
    assert fixed_in_26_07.hits([embedded, container]) == ["24.10"]
    assert fixed_in_26_07.hits([audit.Pin("tritonserver", each, frozenset()) for each in ("26.06", "26.07")]) == [
        "26.06"
    ]
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(ValueError, match="ARG MONTH"):
        audit.server_pins(tmp_path / "Dockerfile")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"here": "fine"}, "exposed, accepted, not exposed"), ({"why": ""}, "no field is empty"), ({"cve": 1}, "cve")],
)
def test_an_advisory_says_everything(tmp_path, change, message):
    entry = {"component": "a", "ids": ["CVE-1"], "affected": "<1", "what": "w", "here": "accepted", "why": "y"}
    path = tmp_path / "advisories.yaml"
    path.write_text(json.dumps([{**entry, "source": "s"}]))
    assert audit.read_advisories(path)[0].ids == ("CVE-1",)
    path.write_text(json.dumps([{**entry, "source": "s", **change}]))
    with pytest.raises(ValueError, match=message):
        audit.read_advisories(path)


@pytest.mark.skipif(tomllib is None, reason="tomllib is missing; make test-unit runs it with Python 3.11 or 3.12")
def test_every_direct_dependency_has_a_reason_and_is_pinned():
    text = (ROOT / "pyproject.toml").read_text()
    lines = text.splitlines()
    document = tomllib.loads(text)
    project = document["project"]
    for requirement in project["dependencies"]:
        place = next(index for index, line in enumerate(lines) if line.strip().startswith(f'"{requirement}"'))
        before = next(line for line in reversed(lines[:place]) if not line.strip().startswith('"'))
        assert before.strip().startswith("#"), requirement
    for extra in project["optional-dependencies"]:
        place = next(index for index, line in enumerate(lines) if line.startswith(f"{extra} = ["))
        assert lines[place - 1].startswith("#"), extra
    locks = ("tensorrt", "gpu")
    pinned = {pin.name for lock in locks for pin in audit.read_lock(ROOT / f"requirements/{lock}.txt")} | {"torch"}
    wanted = [*project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        wanted += requirements if extra not in ("bench", "heic") else []
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()
        assert name in pinned, requirement
    exporter = {pin.name for pin in audit.read_lock(ROOT / "requirements/exports.txt")} | {"torch"}
    for requirement in document["dependency-groups"]["exports"]:
        assert re.match(r"[A-Za-z0-9._-]+", requirement)[0] in exporter, requirement
    for lock in ("openvino", "dev", "tensorrt"):
        (pin,) = [pin for pin in audit.read_lock(ROOT / f"requirements/{lock}.txt") if pin.name == "openvino"]
        assert document["dependency-groups"]["openvino"][0].startswith(f"openvino=={pin.version};")


def test_the_locks_bring_all_that_is_needed_though_pip_does_not_resolve_them():
    """Two disagree (``pyproject.toml``): OpenCV asks for NumPy 2, and works with 1.26; OpenVINO for its telemetry."""
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    faults = [line for line in checked.stdout.splitlines() if line != "No broken requirements found."]
    known = r"opencv-python-headless \S+ has requirement numpy>=2;|openvino \S+ requires openvino-telemetry,"
    assert [line for line in faults if not re.match(known, line)] == []


def test_no_lock_holds_a_package_that_reports_to_its_maker():
    assert [pin for pin in audit.all_pins() if "telemetry" in pin.name.replace("opentelemetry", "")] == []


def test_what_is_fetched_elsewhere_is_hashed():
    """Outside of pip and its lock files nothing downloads: every fetch goes through base.fetch with a SHA-256."""
    offenders = []
    for path in [*ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py"), *ROOT.glob("*/*/*/*.py")]:
        if path.parts[len(ROOT.parts)] in (".venv", ".cache", "tests", "requirements", "out"):
            continue
        text = path.read_text()
        if re.search(r"urlretrieve|requests\.get|https?://(?!127\.0\.0\.1|\{)", text) and "urlopen" in text:
            offenders.append(path)
    assert offenders == []


def test_a_changed_a_withdrawn_and_a_missing_file_are_noticed(monkeypatch, tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text(
        f"Good_one==1.0 \\\n    --hash=sha256:{'a' * 64}\nbad==2.0 ; python_version < '3.12' \\\n"
        f"    --hash=sha256:{'b' * 64} \\\n    --hash=sha256:{'c' * 64}\n"
    )
    good, bad = audit.read_lock(lock)
    assert (good.name, good.version, len(bad.hashes)) == ("good-one", "1.0", 2)
    files = {
        "good-one": [{"hashes": {"sha256": "a" * 64}, "upload-time": "2025-01-02T03:04:05Z", "yanked": False}],
        "bad": [{"hashes": {"sha256": "b" * 64}, "upload-time": "2025-01-02T03:04:05Z", "yanked": "wrong file"}],
    }

    class Answer:
        def __init__(self, request, timeout):
            self.name = request.full_url.split("/")[-2]

        def __enter__(self):
            import io
            import json

            return io.StringIO(json.dumps({"files": files[self.name]}))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(audit.urllib.request, "urlopen", Answer)
    assert audit.look_up(good, "https://index/simple") == audit.Release(good, date(2025, 1, 2))
    problems = audit.look_up(bad, "https://index/simple").problems
    assert problems == ("1 of 2 pinned files are not in the index", "withdrawn: wrong file")


def test_no_wheel_puts_the_rooms_into_site_packages(tmp_path):
    with pytest.raises(ValueError, match="which files to ship"):
        next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
