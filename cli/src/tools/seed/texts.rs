//! What people say in tickets.

/// What somebody asks, and how it goes on: their words and those of whoever helps, in turn.
pub(super) struct Thread {
    pub(super) subject: &'static str,
    pub(super) tag: &'static str,
    pub(super) turns: &'static [&'static str],
}

pub(super) const THREADS: &[Thread] = &[
    Thread {
        subject: "The invoice shows the wrong amount",
        tag: "billing",
        turns: &[
            "Our last invoice says 99.00 USD, but we are on the smaller plan.",
            "You changed the plan in the middle of the month; the difference was charged for the days that were left. I have attached how it was reckoned.",
            "I see, thank you. That is fine then.",
        ],
    },
    Thread {
        subject: "A device has been offline since this morning",
        tag: "devices",
        turns: &[
            "The sensor in the cold store does not report any more. The others in the same room do.",
            "Its last heartbeat came at 6:12. Could you look whether the light on its side blinks twice?",
            "It does. Somebody had pulled the cable of its antenna.",
            "Then it should be back within a minute. I close this when I see it.",
        ],
    },
    Thread {
        subject: "How do I add a colleague?",
        tag: "how-to",
        turns: &[
            "I would like to give a colleague access, but only to read.",
            "Invite them with the role viewer; they may look at everything and change nothing.",
            "Perfect.",
        ],
    },
    Thread {
        subject: "Messages are not delivered to one number",
        tag: "messages",
        turns: &[
            "Since yesterday one of our customers gets none of our messages, all others do.",
            "The provider says that the number has blocked the sender. Has the customer perhaps answered STOP?",
            "They have. We shall ask them to write START.",
        ],
    },
    Thread {
        subject: "Export of last quarter's usage",
        tag: "how-to",
        turns: &[
            "Our accountants want what was used in the last quarter, month by month. Where do I find that?",
            "Under usage history; each month is final 72 hours after its end.",
        ],
    },
    Thread {
        subject: "Thermostat does not take the new interval",
        tag: "devices",
        turns: &[
            "I have set the interval to 60 seconds, but it goes on reporting every five minutes.",
            "Its firmware takes a change only when it is asked to reload. I have sent it the command.",
            "Works now.",
        ],
    },
    Thread {
        subject: "Please change our billing address",
        tag: "billing",
        turns: &["We have moved. The new address is in the attached file.", "Changed; the next invoice will have it."],
    },
    Thread {
        subject: "Login does not work after the holidays",
        tag: "access",
        turns: &[
            "It says that my account is locked. I am sure that I know the password.",
            "There were ten attempts with another one on Monday. I have unlocked it; please set a new password.",
            "Done. It was my phone, which still had the old one.",
        ],
    },
    Thread {
        subject: "Feature request: dark mode",
        tag: "ideas",
        turns: &["The screen in the control room is bright at night. A dark mode would help a lot."],
    },
    Thread {
        subject: "We need more outlets",
        tag: "billing",
        turns: &[
            "We open another shop next month. Does our plan include it?",
            "Your plan has room for one more. Beyond that the next larger one is the better choice.",
            "Then one more it is, for now.",
        ],
    },
];
