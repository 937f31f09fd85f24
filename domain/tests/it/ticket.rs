use chrono::DateTime;
use domain::support::ticket::{Channel, Event, Priority, Relation, Status, Ticket, Visibility};
use domain::{Aggregate as _, Personal, UserId};
use uuid::Uuid;

#[test]
fn every_ticket_event_is_stored_as_it_always_was() {
    let (ada, grace) = (UserId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)));
    let (part, other) = (Uuid::from_u128(3), Uuid::from_u128(4));
    let personal = |text: &str| Personal::new(ada.into(), text.to_owned());
    let time = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let samples = [
        Event::Opened {
            number: 42,
            subject: personal("The invoice shows the wrong amount"),
            body: personal("It says 99.00 USD."),
            priority: Priority::High,
            channel: Channel::Email,
            requester: ada,
            opened_by: Some(grace),
            tags: vec!["billing".into()],
        },
        Event::SubjectChanged { subject: personal("Invoice 2041") },
        Event::CommentAdded {
            comment: part,
            body: personal("We look into it."),
            visibility: Visibility::Public,
            author: Some(grace),
            by_agent: true,
            first_response: true,
        },
        Event::CommentRedacted { comment: part, visibility: Visibility::Internal },
        Event::Assigned { from: None, to: grace },
        Event::Unassigned { from: grace },
        Event::PriorityChanged { from: Priority::Normal, to: Priority::Urgent },
        Event::StatusChanged { from: Status::Open, to: Status::PendingCustomer },
        Event::Resolved { at: time },
        Event::Closed,
        Event::Reopened,
        Event::Deleted { freed: 0 },
        Event::Linked { ticket: other, relation: Relation::Duplicates },
        Event::Unlinked { ticket: other },
        Event::Tagged { tag: "billing".into() },
        Event::Untagged { tag: "billing".into() },
        Event::Attached {
            attachment: part,
            name: personal("invoice-2041.pdf"),
            size: 48_213,
            sha256: "ab".repeat(32),
            visibility: Visibility::Public,
            by: Some(ada),
        },
        Event::Detached { attachment: part, visibility: Visibility::Public, size: 0 },
        Event::FollowerAdded { user: grace },
        Event::FollowerRemoved { user: grace },
    ];
    crate::check("ticket", Ticket::EVENTS, &samples);
}
