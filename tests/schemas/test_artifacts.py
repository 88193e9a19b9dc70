from dataclasses import replace

import pytest

from schemas.artifacts import Card, Registry, write_card
from schemas.calibration import Worth, table
from schemas.errors import ArtifactError
from schemas.settings import Settings
from workers.cli.doctor import _model


def card(version):
    return Card(model_version=version, created_at=1.0, data_hash="d", settings={}, split_time=2.0, files={})


def publish(registry, version, content=b"weights"):
    with registry.publish(version) as folder:
        (folder / "w.safetensors").write_bytes(content)
        write_card(folder, card(version))
    registry.select(version)


def test_a_published_version_can_be_opened_and_selected(tmp_path):
    registry = Registry(tmp_path)
    publish(registry, "v1")
    publish(registry, "v2")
    assert registry.versions() == ["v1", "v2"]
    assert registry.open().model_version == "v2"
    assert registry.open("v1").path("w.safetensors").read_bytes() == b"weights"
    registry.select("v1")
    assert registry.current() == "v1"


def test_an_error_while_publishing_leaves_nothing(tmp_path):
    registry = Registry(tmp_path)
    with pytest.raises(ZeroDivisionError), registry.publish("v1") as folder:
        (folder / "w.safetensors").write_bytes(bytes(1 // 0))
    with pytest.raises(ArtifactError, match=r"no card\.json"), registry.publish("v2"):
        pass
    assert list(registry.folder.iterdir()) == []


def test_a_version_is_not_replaced_while_roles_read_it(tmp_path):
    registry = Registry(tmp_path)
    publish(registry, "v1")
    with pytest.raises(ArtifactError, match="already exists"):
        publish(registry, "v1", b"others")
    assert registry.open("v1").path("w.safetensors").read_bytes() == b"weights"


def test_a_changed_or_missing_file_is_rejected(tmp_path):
    registry = Registry(tmp_path)
    publish(registry, "v1")
    weights = registry.folder / "v1" / "w.safetensors"
    weights.write_bytes(b"weightz")
    with pytest.raises(ArtifactError, match="does not match its hash"):
        registry.open()
    weights.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        registry.open()


def test_errors_say_what_to_do(tmp_path):
    registry = Registry(tmp_path)
    with pytest.raises(ArtifactError, match="freshet fit"):
        registry.open()
    with pytest.raises(ArtifactError, match="available"):
        registry.select("v9")
    publish(registry, "v1")
    with pytest.raises(ArtifactError, match="v9"):
        registry.open("v9")
    with pytest.raises(ArtifactError, match=r"no other\.bin"):
        registry.open().path("other.bin")


def test_incompatible_thresholds_are_rejected(tmp_path):
    registry = Registry(tmp_path)
    with registry.publish("v1") as folder:
        (folder / "calibration.json").write_text('{"min_history": 3}')
        write_card(folder, card("v1"))
    with pytest.raises(ArtifactError, match="freshet fit"):
        registry.open("v1").calibration()


PARTS = [
    Worth(part="behaviour", adds=0.1016, low=0.09, high=0.11, used=True, weight=1.0),
    Worth(part="words", adds=0.0, low=0.0, high=0.0, used=False),
    Worth(part="encoder", adds=0.0002, low=-0.0003, high=0.0007, used=False, weight=0.3, calls=1682),
    Worth(part="written", adds=0.0021, low=0.0004, high=0.0038, used=True, weight=0.6),
    Worth(part="user_vectors", adds=0.0001, low=-0.0004, high=0.0006, used=True, weight=1.0)]


def test_what_pays_is_kept_and_shown(tmp_path):
    registry = Registry(tmp_path)
    with registry.publish("v1") as folder:
        (folder / "items.json").write_text('["a", "b"]')
        write_card(folder, card("v1").model_copy(update={"parts": PARTS}))
    registry.select("v1")
    assert registry.open().card.parts == PARTS
    head, *rows = table(PARTS)
    assert "adds NDCG@10" in head
    assert [row.split("  ")[-1].strip() for row in rows] == [
        "yes", "no", "no: its interval holds 0", "yes", "yes, asked for"]
    assert "+0.0021 [+0.0004, +0.0038]" in rows[3]
    assert len({len(row) - len(row.split("  ")[-1]) for row in rows}) == 1  # in columns
    assert table([]) == []
    check = _model(replace(Settings(), home=tmp_path))
    assert (check.state, check.text.splitlines()[1:]) == ("ok", [head, *rows])
