#!/usr/bin/env python3
"""Makes periods.csv: the boundaries of billing periods, reckoned by Python's own calendar and time zones, apart from the code that is tested with them.

Each line: anchor (UTC), time zone, interval, billing, then the ends of the periods from the anchor on, for five years.
"""

import calendar
import csv
import sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

ANCHORS = [
    "2023-12-31T12:00:00", "2024-01-30T23:59:59", "2024-02-29T09:30:00", "2025-01-31T02:30:00", "2026-10-25T00:30:00",
    # Local times that clocks skip or repeat in later months: 02:30 in Vienna, New York and Lord Howe, midnight in Beirut.
    "2024-12-31T01:30:00", "2025-01-30T01:30:00", "2024-01-10T07:30:00", "2024-12-07T15:15:00", "2024-12-31T22:00:00", "2025-01-26T22:30:00",
]
ZONES = ["UTC", "Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Asia/Beirut"]


def instant(local, zone):
    """The first of two, and what is skipped as the offset before it says: both are what fold=0 means (PEP 495)."""
    return local.replace(tzinfo=zone, fold=0).astimezone(timezone.utc)


def plus(local, months):
    month = local.month - 1 + months
    year, month = local.year + month // 12, month % 12 + 1
    return local.replace(year=year, month=month, day=min(local.day, calendar.monthrange(year, month)[1]))


def main():
    writer = csv.writer(sys.stdout, lineterminator="\n")
    show = lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ")
    for text in ANCHORS:
        for name in ZONES:
            zone = ZoneInfo(name)
            anchor = datetime.fromisoformat(text).replace(tzinfo=timezone.utc)
            local = anchor.astimezone(zone).replace(tzinfo=None)
            for billing in ("anniversary", "calendar"):
                begin = local if billing == "anniversary" else local.replace(day=1, hour=0, minute=0, second=0)
                for interval, months in (("month", 1), ("year", 12)):
                    ends = [instant(plus(begin, n), zone) for n in range(months, 61, months)]
                    writer.writerow([show(anchor), name, interval, billing] + [show(end) for end in ends])


main()
