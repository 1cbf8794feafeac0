"""`dinokit doctor` and its findings, against the truth of this machine and against planted faults."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dinov2kit import doctor
from dinov2kit.cli.app import app
from dinov2kit.doctor import Finding
from dinov2kit.indexes import check_faiss
from dinov2kit.indexes.faiss_door import load_faiss


def plant(folder: Path, name: str, version: str) -> Path:
    """Make a distribution seem installed."""
    facts = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def block(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Make an import fail as if the module were absent, or torn."""
    monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("DINOKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def unloaded_faiss():
    load_faiss.cache_clear()
    yield
    load_faiss.cache_clear()


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    return {finding.name: finding for finding in findings}


def test_findings_say_the_truth_about_this_machine(home: Path) -> None:
    found = by_name(doctor.examine())
    assert platform.python_version() in found["python"].detail
    assert found["torch"].detail.startswith(torch.__version__)
    assert f"{torch.get_num_threads()} threads" in found["torch"].detail
    assert ("CUDA" in found["torch"].detail) == (torch.version.cuda is not None)
    assert importlib.metadata.version("pillow") in found["pillow"].detail
    assert importlib.metadata.version("pillow-heif") in found["heic"].detail
    assert "opencv-python-headless" in found["opencv"].detail
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in found["device"].detail
    elif not torch.backends.mps.is_available():
        assert (found["device"].status, "no GPU" in found["device"].detail) == ("warning", True)
    assert {finding.status for finding in found.values()} <= {"ok", "warning"}
    assert str(home) in found["disk"].detail
    assert not home.exists()


def test_every_finding_that_is_not_good_says_what_to_do(home: Path) -> None:
    for finding in [*doctor.examine(), check_faiss()]:
        assert finding.detail
        assert "\n" not in finding.detail
        assert finding.status == "ok" or finding.hint


def test_bf16_is_judged_as_the_encoder_judges_it(home: Path) -> None:
    from dinov2kit.encoder import _choose_device, computes_bf16

    fast = computes_bf16(_choose_device("auto"))
    assert by_name(doctor.check_torch())["bf16"].detail.startswith("fast" if fast else "not fast")


def test_weights_are_listed_once_they_are_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = doctor.check_weights()
    assert (before.status, before.hint) == ("warning", "pull one with: dinokit models pull vits14")
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    assert "DINOKIT_OFFLINE" in str(doctor.check_weights().hint)
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "dinov2_vits14_pretrain.pth").write_bytes(b"x")
    after = doctor.check_weights()
    assert (after.status, after.detail) == ("ok", f"dinov2_vits14 in {home / 'weights'}")


def test_two_opencvs_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plant(tmp_path, "opencv-python", "4.12.0"))
    finding = doctor.check_opencv()
    assert finding.status == "failure"
    assert "opencv-python 4.12.0" in finding.detail
    assert str(finding.hint).startswith("pip uninstall -y opencv-python-headless opencv-python &&")


@pytest.mark.parametrize(
    ("module", "check"),
    [("torch", doctor.check_torch), ("cv2", doctor.check_opencv), ("PIL", doctor.check_pillow)],
)
def test_a_package_that_cannot_be_imported_is_a_finding(
    module: str, check, monkeypatch: pytest.MonkeyPatch
) -> None:
    block(monkeypatch, module)
    found = check()
    (finding,) = found if isinstance(found, list) else [found]
    assert finding.status == "failure"
    assert "cannot be imported" in finding.detail
    assert "pip install" in str(finding.hint)


def test_absent_heic_is_a_warning_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    seek = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "pillow_heif" else seek(name)
    )
    finding = doctor.check_heic()
    assert (finding.status, finding.hint) == ("warning", "pip install 'dinov2kit[heic]'")


def test_an_xformers_that_does_not_load_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dinov2kit.attention import _xformers_kernel

    monkeypatch.syspath_prepend(plant(tmp_path, "xformers", "0.0.35"))
    block(monkeypatch, "xformers.ops")
    _xformers_kernel.cache_clear()
    finding = doctor.check_xformers()
    _xformers_kernel.cache_clear()
    assert finding.status == "warning"
    assert finding.detail.startswith("0.0.35 cannot be imported")


def test_a_codec_that_this_pillow_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    has = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and has(name))
    finding = doctor.check_pillow()
    assert (finding.status, finding.detail.rpartition("; ")[2]) == ("warning", "not AVIF")
    monkeypatch.setattr(features, "check", lambda name: name != "jpg" and has(name))
    assert doctor.check_pillow().status == "failure"


def test_a_data_folder_that_is_no_folder_is_a_failure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file")
    finding = doctor.check_disk()
    assert (finding.status, "DINOKIT_HOME" in str(finding.hint)) == ("failure", True)


def test_a_disk_that_is_nearly_full_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**8}))
    assert doctor.check_disk().status == "warning"
    assert doctor.check_disk().detail.startswith("0.1 GB free")


def test_settings_are_listed_and_misspelt_ones_named(tmp_path: Path) -> None:
    assert doctor.check_settings({"PATH": "/bin"}).detail == "no DINOKIT_ variable is set"
    known = doctor.check_settings({"DINOKIT_OFFLINE": "1", "DINOKIT_INDEX": str(tmp_path)})
    assert (known.status, known.detail) == ("ok", f"DINOKIT_INDEX={tmp_path}, DINOKIT_OFFLINE=1")
    wrong = doctor.check_settings({"DINOKIT_OFLINE": "1"})
    assert wrong.status == "warning"
    assert str(wrong.hint).startswith("DINOKIT_OFLINE means nothing")
    assert doctor.check_settings({"DINOKIT_INDEX": str(tmp_path / "no")}).status == "warning"


def test_the_known_settings_are_those_that_the_source_reads() -> None:
    import re

    import dinov2kit

    read = set()
    for folder in dinov2kit.__path__:
        for path in [
            *Path(folder).glob("*.py"),
            *Path(folder).glob("indexes/*.py"),
            *Path(folder).glob("cli/*.py"),
        ]:
            read |= set(re.findall(r'environ(?:\.get\(|\[)"(DINOKIT_\w+)"', path.read_text("utf-8")))
    assert read == set(doctor.VARIABLES)


def test_faiss_is_found_with_its_version(unloaded_faiss: None) -> None:
    finding = check_faiss()
    assert finding.status == "ok"
    assert finding.detail.startswith(("faiss-cpu ", "faiss-gpu "))


def test_a_doubled_faiss_is_a_failure_and_the_line_that_mends_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unloaded_faiss: None, home: Path
) -> None:
    here = check_faiss().detail.split(" ")[0]
    other = "faiss-gpu" if here == "faiss-cpu" else "faiss-cpu"
    load_faiss.cache_clear()
    monkeypatch.syspath_prepend(plant(tmp_path / "planted", other, "1.14.3"))
    finding = check_faiss()
    assert finding.status == "failure"
    assert f"{other} 1.14.3" in finding.detail
    assert str(finding.hint).startswith("pip uninstall -y faiss-cpu faiss-gpu && pip install")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert f"✗ faiss     {finding.detail}\n            hint: {finding.hint}\n" in result.stdout


def test_an_absent_faiss_is_a_failure(monkeypatch: pytest.MonkeyPatch, unloaded_faiss: None) -> None:
    block(monkeypatch, "faiss")
    finding = check_faiss()
    assert finding.status == "failure"
    assert "pip install 'dinov2kit[cpu]'" in str(finding.hint)


def test_the_command_prints_a_line_for_each_finding_and_ends_well(home: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert (result.exit_code, result.stderr) == (0, "")
    marked = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert len(marked) == len(doctor.examine()) + 1
    assert {line[0] for line in marked} <= {"✓", "!"}


def test_json_holds_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    document = json.loads(result.stdout)
    assert (document["schema"], document["ok"], result.exit_code) == ("dinokit.doctor/1", True, 0)
    names = [finding["name"] for finding in document["findings"]]
    assert names[:2] == ["python", "torch"]
    assert names[-1] == "faiss"
    assert set(document["findings"][0]) == {"name", "status", "detail", "hint"}
    block(monkeypatch, "cv2")
    broken = CliRunner().invoke(app, ["doctor", "--json"])
    assert (json.loads(broken.stdout)["ok"], broken.exit_code) == (False, 1)


def test_a_pipe_that_knows_no_unicode_gets_utf_8(home: Path) -> None:
    command = [sys.executable, "-m", "dinov2kit.cli", "doctor"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, env=env, check=True)
    assert result.stdout.decode("utf-8").startswith("✓ python")
