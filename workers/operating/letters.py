"""Dead letters read from their topic, and sent to the topics of their records again."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaError, Message, Producer

from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError
from schemas.messages import DeadLetter
from schemas.settings import KafkaSettings
from schemas.topics import DEAD_LETTERS
from workers.kafka.configuration import producer
from workers.kafka.reader import read_all
from workers.measurement.dead_letters import headers_of, key_of, value_of


def read_letters(kafka: KafkaSettings, last: int) -> list[DeadLetter]:
    """Return the newest dead letters, in the order in which they were written.

    Raises:
        FreshetError: the broker does not answer.
    """
    letters = []
    for message in read_all(kafka, [DEAD_LETTERS.name], last=last, within_s=120.0):
        try:
            letters.append(decode(DeadLetter, message.value()))
        except PoisonError:  # not written by Freshet
            continue
    return letters


def send_again(kafka: KafkaSettings, letters: Iterable[DeadLetter]) -> int:
    """Send the letters' records to their topics and return how many the broker has confirmed.

    Raises:
        FreshetError: not all of them; the text says how many.
    """
    client = Producer(producer(kafka, log_level=2))
    failed: list[KafkaError] = []
    sent = 0

    def done(error: KafkaError | None, _: Message) -> None:
        nonlocal sent
        if error is None:
            sent += 1
        else:
            failed.append(error)

    for letter in letters:
        while True:
            try:
                client.produce(letter.topic, value_of(letter), key_of(letter), headers=headers_of(letter),
                               on_delivery=done)
                break
            except BufferError:
                client.poll(0.5)
        client.poll(0)
    left = client.flush(60.0)
    if failed or left:
        raise FreshetError(f"{sent:,} records were sent again; {len(failed) + left:,} were not: "
                           f"{failed[0].str() if failed else 'the broker does not answer'}")
    return sent
