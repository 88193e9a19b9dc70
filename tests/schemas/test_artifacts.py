import pytest

from schemas.artifacts import Card, Registry, write_card
from schemas.errors import ArtifactError


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
