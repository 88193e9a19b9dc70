import json

from schemas.settings import KafkaSettings, QdrantSettings, Settings
from workers.demo.report import plain_settings


def test_the_settings_in_a_report_leave_out_secrets() -> None:
    shown = plain_settings(Settings(kafka=KafkaSettings("kafka:9092", sasl_password="hunter2"),  # noqa: S106
                                    qdrant=QdrantSettings(api_key="hunter2")))
    assert shown["kafka"]["bootstrap"] == "kafka:9092"
    assert "hunter2" not in str(shown)
    assert json.loads(json.dumps(shown)) == shown, "the report writes them as JSON"
