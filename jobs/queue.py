"""The wake-up call: a Celery message that carries a job id and nothing else. The truth is in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from jobs.errors import BrokerUnavailable
from jobs.settings import Settings

RUN_TASK = "jactus.run"
CONNECT_SECONDS = 3


def queue_of(device_class: str) -> str:
    """Name of the queue that workers of a class listen to."""
    return f"jactus.{device_class}"


def make_celery(settings: Settings) -> Celery:
    """A worker takes no more messages than it has free slots. What is lost is sent again by the sweep."""
    app = Celery("jactus", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=queue_of("cpu"),
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,  # whoever reaches the broker may not command workers
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": 10 * CONNECT_SECONDS,
            "max_retries": 1,  # a request does not wait for a broker that is away: the sweep sends later
            "interval_start": 0,
            "interval_step": 0.1,
        },
    )
    return app


class Queue:
    """The sending side."""

    def __init__(self, settings: Settings) -> None:
        self._celery = make_celery(settings)

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, str], None]]:
        """A function that wakes a worker of the class for the job; raises BrokerUnavailable."""
        with self._producer() as producer:
            yield lambda job_id, device_class: self._celery.send_task(
                RUN_TASK, args=[job_id], queue=queue_of(device_class), retry=False, producer=producer
            )

    def waiting(self, device_class: str) -> int:
        """Messages that no worker of the class has taken yet; raises BrokerUnavailable."""
        with self._producer() as producer:
            try:
                return int(producer.channel.queue_declare(queue_of(device_class), passive=False).message_count)
            except producer.connection.connection_errors as error:
                raise OperationalError(str(error)) from error

    @contextmanager
    def _producer(self) -> Iterator[Producer]:
        try:
            with self._celery.producer_or_acquire() as producer:
                yield producer
        except OperationalError as error:
            raise BrokerUnavailable("The message broker does not answer; waiting jobs are sent again later.") from error

    def check(self) -> None:
        """Raise when the broker does not answer."""
        with self._celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=CONNECT_SECONDS)
