use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use domain::billing::period::{Billing, Interval, Schedule};

/// What Python's calendar and time zones say of the same anchors: made by `domain/tests/periods/make.py`.
const TABLE: &str = include_str!("../periods/periods.csv");

#[test]
fn month_end_anchors_over_leap_years_and_daylight_saving_changes_equal_an_independent_table_and_periods_are_contiguous() {
    let mut compared = 0;
    for line in TABLE.lines() {
        let mut fields = line.split(',');
        let mut field = || fields.next().unwrap();
        let (anchor, zone): (DateTime<Utc>, Tz) = (field().parse().unwrap(), field().parse().unwrap());
        let interval = if field() == "month" { Interval::Month } else { Interval::Year };
        let billing = if field() == "calendar" { Billing::Calendar } else { Billing::Anniversary };
        let schedule = Schedule::beginning(anchor, billing, zone);
        let mut period = schedule.rest_from(anchor, interval);
        assert_eq!(period.start, anchor);
        for end in fields {
            assert_eq!(period.end, end.parse::<DateTime<Utc>>().unwrap(), "{line}");
            let next = schedule.from(period.end, interval);
            assert_eq!(next.start, period.end, "contiguous");
            // Where something goes on in the middle of a period, it goes on to the same end.
            let middle = next.start + (next.end - next.start) / 2;
            assert_eq!(schedule.rest_from(middle, interval).end, next.end, "{line}");
            period = next;
            compared += 1;
        }
    }
    assert!(compared > 8_000, "{compared}");
}
