"""Dashboards, alerts and scrape configuration name what is there: metrics, labels, ports, runbooks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from promql_parser import AggModifierType, AggregateExpr, BinaryExpr, VectorSelector

from schemas.watch.table import ALL, BY_NAME, METRICS, PROCESS, series
from tests.test_compose import COMPOSE, ROLES
from workers.supervision.healthz import PORTS

ROOT = Path(__file__).parents[1]
BOARDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
RULES = [rule for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
         for rule in group["rules"]]
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
OPERATIONS = (ROOT / "docs/operations.md").read_text()
OWN = {name: metric for metric in METRICS for name in series(metric)}
OTHERS = {*PROCESS, "up", "ALERTS"}  # of prometheus-client and of Prometheus itself
SCRAPED = {"job", "instance"}  # labels that Prometheus adds


def panels() -> Iterator[Any]:
    for name, board in sorted(BOARDS.items()):
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield pytest.param(board, panel, id=f"{name}: {panel['title']}")


def queries() -> Iterator[Any]:
    for name, board in sorted(BOARDS.items()):
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield pytest.param(target["expr"], id=f"{name}: {panel['title']} {target['refId']}")
    for rule in RULES:
        yield pytest.param(rule["expr"], id=rule["alert"])


def parsed(query: str) -> Any:
    return promql_parser.parse(query.replace("$__rate_interval", "5m"))


def nodes(expression: Any) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(expression, lambda node: found.append(node) or True)  # True: go on
    return found


def labels_of(metric: str) -> set[str]:
    return (set(OWN[metric].labels) if metric in OWN else set()) | SCRAPED | (
        {"le"} if metric.endswith("_bucket") else set())


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_names_metrics_that_are_in_the_table_with_their_labels_and_values(query: str) -> None:
    selectors = [node for node in nodes(parsed(query)) if isinstance(node, VectorSelector)]
    assert selectors
    for one in selectors:
        assert one.name in OWN or one.name in OTHERS, one.name
        for matcher in one.matchers.matchers:
            assert matcher.name in labels_of(one.name), matcher.name
            allowed = OWN[one.name].values.get(matcher.name) if one.name in OWN else None
            if isinstance(allowed, tuple):
                for value in matcher.value.split("|"):
                    assert value in allowed, f"{matcher.name}={value} never occurs"
            elif matcher.name == "job":
                assert set(matcher.value.split("|")) <= {job["job_name"] for job in PROMETHEUS["scrape_configs"]}


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_groups_by_labels_that_its_metrics_have(query: str) -> None:
    for node in nodes(parsed(query)):
        if isinstance(node, AggregateExpr) and node.modifier is not None:
            assert node.modifier.type == AggModifierType.By
            inside = [one for one in nodes(node.expr) if isinstance(one, VectorSelector)]
            for label in node.modifier.labels:
                assert all(label in labels_of(one.name) for one in inside), label


@pytest.mark.parametrize("query", list(queries()))
def test_counters_are_read_as_rates_and_quantiles_of_buckets(query: str) -> None:
    text = re.sub(r"\s", "", query)
    for name, metric in OWN.items():
        if name not in re.findall(r"[a-z_]+", text):
            continue
        if name.endswith("_bucket"):
            assert "histogram_quantile" in text
        if metric.kind == "histogram":
            assert f"rate({name}" in text
        elif metric.kind == "counter":
            assert f"rate({name}" in text or f"increase({name}" in text or name in {
                "freshet_guard_rollbacks_total", "freshet_alignment_attempts_total"}  # few and far between
        else:
            assert f"rate({name}" not in text
    for node in nodes(parsed(query)):
        if isinstance(node, BinaryExpr) and str(node.op) == "/":
            left, right = (_by(side) for side in (node.lhs, node.rhs))
            assert left is None or right is None or left == right, "a division of sums over different labels is empty"


def _by(side: Any) -> frozenset[str] | None:
    for node in nodes(side):
        if isinstance(node, AggregateExpr):
            return frozenset(node.modifier.labels if node.modifier else ())
    return None


@pytest.mark.parametrize(("board", "panel"), list(panels()))
def test_a_panel_says_what_it_shows_and_fits_the_grid(board: dict[str, Any], panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith((".", ")"))
    assert panel["datasource"]["uid"] == provisioned("datasources/prometheus.yml")["datasources"][0]["uid"]
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    for other in board["panels"]:
        if other is not panel:
            at = other["gridPos"]
            assert (at["x"] >= place["x"] + place["w"] or place["x"] >= at["x"] + at["w"]
                    or at["y"] >= place["y"] + place["h"] or place["y"] >= at["y"] + at["h"]), other["title"]
    for target in panel["targets"]:
        by = _by(parsed(target["expr"])) or frozenset()
        asked = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert asked <= by | SCRAPED, "a legend of a label that the query has lost is empty"


def provisioned(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/grafana/provisioning" / name).read_text())


def test_there_is_a_dashboard_for_each_subject_and_every_metric_is_shown_somewhere() -> None:
    assert set(BOARDS) == {f"freshet-{name}" for name in ("overview", "freshness", "trust", "streams", "reliability")}
    for uid, board in BOARDS.items():
        assert (board["uid"], board["tags"]) == (uid, ["freshet"])
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
    text = " ".join(target["expr"] for board in BOARDS.values() for panel in board["panels"]
                    for target in panel.get("targets", ()))
    missing = {metric.name for metric in METRICS if metric.name not in text}
    # Said otherwise: readiness by the supervisor, and rates of what is counted elsewhere in other units.
    assert missing == {"freshet_ready", "freshet_role_up", "freshet_role_failures", "freshet_records_processed_total",
                       "freshet_messages_produced_total", "freshet_llm_calls_total", "freshet_guard_margins_total"}


def anchors() -> set[str]:
    heads = re.findall(r"^#+ (.+)$", OPERATIONS, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_read_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert file == "docs/operations.md"
    assert anchor in anchors()
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    by = _by(parsed(rule["expr"]))
    kept = set(by) if by is not None else SCRAPED | {
        label for name, metric in OWN.items() if name in rule["expr"] for label in metric.labels}
    assert used <= kept
    assert re.fullmatch(r"\d+[mh]", rule["for"])


def test_every_alert_has_a_name_of_its_own_and_every_runbook_an_alert() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    section = OPERATIONS.split("## Runbook\n")[1].split("\n## ")[0]
    heads = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^### (.+)$", section,
                                                                                           re.MULTILINE)}
    assert {rule["annotations"]["runbook"].partition("#")[2] for rule in RULES} == heads


def test_prometheus_scrapes_every_role_at_its_port() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    base = int(ROLES["streams"]["environment"]["FRESHET_METRICS_PORT"])
    for role in ("supervisor", *ALL):
        (found,) = jobs[role]["dns_sd_configs"]
        assert found["port"] == base + PORTS[role]
        assert found["type"] == "A"
        for name in found["names"]:
            command = COMPOSE["services"][name]["command"]
            assert role in ("supervisor", command[command.index("--roles") + 1])
    asked = {name for job in jobs.values() for found in job.get("dns_sd_configs", ()) for name in found["names"]}
    assert asked == {name for name, service in ROLES.items() if "--roles" in service["command"]}
    assert set(jobs) == {"supervisor", *ALL, "qdrant"}
    for name, role in ROLES.items():
        assert role["environment"]["FRESHET_METRICS_HOST"] == "0.0.0.0"  # noqa: S104
        published = ["127.0.0.1:8420:8420"] if name == "console" else []
        assert role.get("ports", []) == published, "metrics ask for no password"


def test_compose_mounts_what_prometheus_and_grafana_read() -> None:
    services = COMPOSE["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["watch"]
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", services[name]["image"]), "pinned"
    assert PROMETHEUS["rule_files"] == ["/etc/prometheus/alerts.yml"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    (provider,) = provisioned("dashboards/freshet.yml")["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert provisioned("datasources/prometheus.yml")["datasources"][0]["url"] == "http://prometheus:9090"


def test_questions_of_an_operator_are_answered_by_panels_that_are_there() -> None:
    section = OPERATIONS.split("## Watch it\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+)\. (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 11))
    titles = {(board["title"].removeprefix("Freshet: "), panel["title"]) for board in BOARDS.values()
              for panel in board["panels"]}
    for _, question, shown, metrics in rows:
        assert question.endswith("?")
        places = re.findall(r"([\w ]+): \*([^*]+)\*", shown)
        assert places, question
        assert {(board.strip(), panel) for board, panel in places} <= titles, question
        names = re.findall(r"`(\w+)`", metrics)
        assert names, question
        assert set(names) <= BY_NAME.keys() | PROCESS.keys(), question
