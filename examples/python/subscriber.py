"""Keeps a copy of Tenure's events, each exactly once, by the rule of docs/SUBSCRIBING.md.

The copy and the checkpoint are in one SQLite file and move in one transaction. It may be killed at any time, messages may come again, the stream may lose its tail and be
refilled, or be deleted and rebuilt: nothing is lost and nothing doubled. When the log itself was restored to an earlier state, the copy holds events that no longer exist: the
subscriber then stops with exit code 3 and says where.

    NATS_URL=nats://user:password@host:4222 python subscriber.py copy.db
"""

import asyncio
import datetime
import hashlib
import os
import sqlite3
import sys
import uuid

import nats
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

EVENTS = os.environ.get("TENURE_BUS_PREFIX", "tenure") + ".events.>"
NAME = os.environ.get("SUBSCRIBER_NAME", "example-python")


def open_copy(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("create table if not exists checkpoint (one integer primary key check (one = 1), position integer not null, hash text not null)")
    db.execute("create table if not exists events (position integer not null, id text not null, type text not null, payload text not null)")
    db.execute("insert or ignore into checkpoint values (1, 0, ?)", ("00" * 32,))
    return db


def handle(db, events):
    """What is done with events, and the checkpoint, in one transaction."""
    with db:
        db.execute("begin immediate")
        for position, message in events:
            row = (position, message.headers["ce-id"], message.headers["ce-type"], message.data.decode())
            db.execute("insert into events values (?, ?, ?, ?)", row)
        db.execute("update checkpoint set position = ?, hash = ?", (position, message.headers["ce-loghash"]))


class Diverged(Exception):
    """The stream is not the one that the copy was made from."""


def continues(hash, position, message):
    """Whether a message is the event that follows a position with this hash: the log's chain is SHA-256 over the previous hash, the position and the event's digest."""
    headers = message.headers or {}
    if "ce-loghash" not in headers:
        return False
    digest = hashlib.sha256()
    for field in (
        uuid.UUID(headers["ce-id"]).bytes,
        uuid.UUID(headers["ce-tenantid"]).bytes,
        *(text.encode() for text in headers["ce-subject"].split("/", 1)),
        headers["ce-sequence"].encode(),
        headers["ce-type"].encode(),
        headers["ce-eventversion"].encode(),
        message.data,
        headers["ce-metadata"].encode(),
        str(microseconds(headers["ce-time"])).encode(),
    ):
        digest.update(len(field).to_bytes(8, "big") + field)
    link = hashlib.sha256(bytes.fromhex(hash) + position.to_bytes(8, "big") + digest.digest())
    return link.hexdigest() == headers["ce-loghash"]


def microseconds(time):
    """Since 1970, of an RFC 3339 time with six decimals in UTC."""
    since = datetime.datetime.fromisoformat(time.replace("Z", "+00:00")) - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return since // datetime.timedelta(microseconds=1)


async def session(js, db):
    """From finding the stream to the first surprise."""
    checkpoint, hash = db.execute("select position, hash from checkpoint").fetchone()
    stream = await js.find_stream_name_by_subject(EVENTS)
    # Rule 5: before anything else, the stream must still have what the copy was made from. While it is shorter (it lost its tail, or is being rebuilt) that is not known.
    if checkpoint > (last := (await js.stream_info(stream)).state.last_seq):
        print(f"the stream ends at {last}, before the copy at {checkpoint}", file=sys.stderr)
        return
    # The consumer begins at the checkpoint itself, so that its message shows whether this is still the same log.
    # Rule 1. What the server remembers of an earlier session does not count, so the consumer is made anew.
    try:
        await js.delete_consumer(stream, NAME)
    except NotFoundError:
        pass
    config = ConsumerConfig(
        durable_name=NAME,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=max(checkpoint, 1),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=10,
    )
    await js.add_consumer(stream, config)
    consumer = await js.pull_subscribe_bind(NAME, stream=stream)
    while True:
        try:
            messages = await consumer.fetch(100, timeout=1)
        except asyncio.TimeoutError:
            # Nothing new, or nobody there any more.
            await js.consumer_info(stream, NAME)
            continue
        events = []
        for message in messages:
            position = message.metadata.sequence.stream
            if position == checkpoint and (message.headers or {}).get("ce-loghash") != hash:
                raise Diverged(f"position {position} has another hash than the copy: the log was restored to an earlier state")
            if position > checkpoint + 1:
                # Rule 4.
                print(f"{position} came after {checkpoint}", file=sys.stderr)
                return
            # Rule 2: what is not new is only acknowledged.
            if position == checkpoint + 1:
                if not continues(hash, position, message):
                    raise Diverged(f"position {position} does not continue the copy: the log was restored to an earlier state, or the message is forged")
                events.append((position, message))
                checkpoint, hash = position, message.headers["ce-loghash"]
        # Rule 3.
        if events:
            handle(db, events)
        for message in messages:
            await message.ack()


async def say(error):
    print(f"the bus: {error!r}", file=sys.stderr)


async def main():
    db = open_copy(sys.argv[1])
    connection = await nats.connect(os.environ["NATS_URL"], max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=say)
    js = connection.jetstream(timeout=2)
    while True:
        try:
            await session(js, db)
        except Diverged as error:
            print(f"stopped: {error}; make a new copy from position 1", file=sys.stderr)
            sys.exit(3)
        except (NatsError, asyncio.TimeoutError) as error:
            print(f"begins again: {error!r}", file=sys.stderr)
        await asyncio.sleep(0.2)


asyncio.run(main())
