"""A producer and a consumer with kafka-python: events of one user in, the list to show that user out.

Nothing of Freshet is imported: this is what another service does. `freshet up` must run; it prints the address.

    .venv/bin/freshet up --port 9092
    .venv/bin/python examples/kafka_python.py --user 42 --items 50,181,174
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition


def send(bootstrap: str, user: str, items: list[str]) -> None:
    """Send an event per item. The key keeps a user's events in order; the id makes a second sending harmless."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    now = time.time()
    for place, item in enumerate(items):
        event = {"user_id": user, "item_id": item, "event_type": "view",
                 "event_time": now - len(items) + place, "event_id": f"{user}-{item}-{int(now)}"}
        producer.send("behaviour-events", key=user.encode(), value=json.dumps(event).encode())
    producer.flush()
    producer.close()


def read_until(consumer: KafkaConsumer, user: str, seconds: float) -> dict[str, Any]:
    """Return the user's newest list once lists stop coming: each event causes one, and new knowledge another."""
    found: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        records = [record for part in consumer.poll(timeout_ms=1000).values() for record in part]
        mine = [json.loads(record.value) for record in records
                if record.key == user.encode() and record.value]  # without a value: the user was erased
        if found and not mine:
            return found
        # `count` orders a user's lists. A service keeps the one that includes the most events.
        found = max([found, *mine] if found else mine, key=lambda one: (one["count"], one["ranked_at"]), default=found)
    return found


def newest_records(bootstrap: str) -> KafkaConsumer:
    """Return a consumer of the lists that are written from now on. A service would name a group instead, to go on
    after a restart where it was: KafkaConsumer("recommendations", group_id="my-service", …)."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    numbers = consumer.partitions_for_topic("recommendations") or set()
    consumer.assign([TopicPartition("recommendations", number) for number in numbers])
    for place in consumer.assignment():
        consumer.position(place)  # looks the end up now, not at the first poll
    return consumer


def main() -> None:
    """Send the events, and print the list that answers them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="localhost:9092")
    parser.add_argument("--user", default="42")
    parser.add_argument("--items", default="50,181,174", help="ids of the catalogue, oldest first")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to wait")
    arguments = parser.parse_args()
    consumer = newest_records(arguments.bootstrap)
    send(arguments.bootstrap, arguments.user, arguments.items.split(","))
    answer = read_until(consumer, arguments.user, arguments.seconds)
    consumer.close()
    if not answer:
        raise SystemExit("no list came; are these items of the catalogue? `freshet dead-letters` says what went wrong")
    print(f"user {answer['user_id']}, {answer['count']} events: it stands on {answer['source']}"
          + (f", without own knowledge ({answer['fallback']})" if answer["fallback"] else ""))
    for place, item in enumerate(answer["items"], 1):
        mark = " " if item["item_id"] in answer["reference"] else "+"  # not in the list of behaviour alone
        print(f"{place:>3} {mark} {item['item_id']}")


if __name__ == "__main__":
    main()
