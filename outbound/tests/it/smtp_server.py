"""A real SMTP server (aiosmtpd) that files what it acknowledges, and refuses what its rules say.

usage: smtp_server.py PORT DIRECTORY

It acknowledges a mail only once it is on disk. What stands in DIRECTORY/rule decides: nothing or `accept`; `451` or `550`: it answers so to every recipient; `slow`: it takes
its time before it answers DATA; `ack-lost`: it files the mail and breaks the connection instead of acknowledging it.
"""

import asyncio
import pathlib
import sys
import uuid

from aiosmtpd.controller import UnthreadedController

directory = pathlib.Path(sys.argv[2])


def rule():
    path = directory / "rule"
    return path.read_text().strip() if path.exists() else "accept"


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if rule() in ("451", "550"):
            return f"{rule()} {address} is not wanted here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if rule() == "slow":
            await asyncio.sleep(3600)
        new = directory / "new"
        new.mkdir(exist_ok=True)
        part = directory / f"{uuid.uuid4()}.part"
        part.write_bytes(envelope.original_content or envelope.content)
        part.rename(new / f"{uuid.uuid4()}.eml")
        if rule() == "ack-lost":
            server.transport.abort()
            await asyncio.sleep(1)
        return "250 filed"


loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
controller = UnthreadedController(Handler(), hostname="127.0.0.1", port=int(sys.argv[1]), loop=loop, decode_data=False)
controller.begin()
print("ready", flush=True)
loop.run_forever()
