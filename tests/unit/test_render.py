"""The renderer as a user runs it."""

import shutil
from pathlib import Path

import pytest

from function.render import EXAMPLES, dump, main, render_example
from tests.standin import observe


def test_an_example_prints_what_it_becomes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(EXAMPLES / "lmcache")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# KVOffloadTier modelplane-system/lmcache-h200 composes 6 resources\n#   DaemonSet ")
    assert "# ModelDeployment default/llama-70b composes 3 resources\n" in out


@pytest.mark.parametrize("text", ["9e23452", "069031890389", "123456789012", "0x12", "true", "1_000"])
def test_a_hash_that_looks_like_a_number_stays_a_text_for_every_reader(text: str) -> None:
    """Kubernetes' reader takes more for numbers than the one here."""
    assert f"a: '{text}'\n" in dump([{"a": text}])


def test_a_folder_may_hold_a_tier_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(EXAMPLES / "lmcache" / "tier.yaml", tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "ModelDeployment" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "holds none of fleet.yaml, tier.yaml, deployment.yaml"),
        ("a: [", "while parsing"),
        ("a: b: c", "mapping values"),
    ],
)
def test_what_cannot_be_read_is_said_without_a_trace(
    text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "tier.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_a_kind_that_is_not_ours_needs_what_an_earlier_step_desires(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text("{apiVersion: v1, kind: Pod, metadata: {name: x}}")
    with pytest.raises(SystemExit, match="2"):
        main([str(file)])
    assert "is of kind 'Pod', whose engines an earlier step desires: give that with -d" in capsys.readouterr().err


def test_what_an_earlier_step_desires_is_rendered_attached(capsys: pytest.CaptureFixture[str]) -> None:
    folder = EXAMPLES / "modelplane"
    required = [f"-e{folder / name}" for name in ("required.yaml", "tier.yaml")]
    assert main([str(folder / "replica.yaml"), *required, f"-d{folder / 'desired.yaml'}"]) == 0
    assert "MooncakeStoreConnector" in capsys.readouterr().out


def test_a_fatal_result_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What runs attached, and is no longer desired."""
    folder = EXAMPLES / "modelplane"
    observed, desired = tmp_path / "observed.yaml", tmp_path / "desired.yaml"
    observed.write_text(dump(observe(render_example("modelplane")["replica"])))
    desired.write_text(
        "{apiVersion: v1, kind: ConfigMap, metadata: {annotations: {crossplane.io/composition-resource-name: x}}}"
    )
    assert main([str(folder / "replica.yaml"), f"-o{observed}", f"-d{desired}"]) == 3
    assert "# fatal: earlier steps no longer desire model-serving-qwen3-coder" in capsys.readouterr().out
