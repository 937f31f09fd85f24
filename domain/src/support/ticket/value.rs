//! The words that tickets are described with.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident $word:literal,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$about])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// As stored and shown.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $word),* } }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
    )* };
}

words! {
    /// Where a ticket stands.
    Status {
        /// Nobody has looked at it.
        #[default]
        New "new",
        /// It is worked on.
        Open "open",
        /// The requester has to answer.
        PendingCustomer "pending_customer",
        /// Something else has to happen first.
        OnHold "on_hold",
        /// It is done, unless somebody objects.
        Resolved "resolved",
        /// It is done for good.
        Closed "closed",
        /// It was spam.
        Deleted "deleted",
    }
    /// How soon a ticket matters.
    Priority {
        /// When there is time.
        Low "low",
        /// In its turn.
        #[default]
        Normal "normal",
        /// Before others.
        High "high",
        /// Now.
        Urgent "urgent",
    }
    /// How a ticket came in.
    Channel {
        /// Through the interface.
        #[default]
        Api "api",
        /// By mail.
        Email "email",
        /// From a web form.
        Web "web",
        /// From a chat.
        Chat "chat",
        /// By telephone.
        Phone "phone",
    }
    /// Who may read a comment or see an attachment.
    Visibility {
        /// The requester too.
        #[default]
        Public "public",
        /// Only those who work on tickets.
        Internal "internal",
    }
    /// What a ticket is to another one.
    Relation {
        /// It has to do with it.
        #[default]
        RelatesTo "relates_to",
        /// It says the same.
        Duplicates "duplicates",
        /// It has to be done before it.
        Blocks "blocks",
    }
}

impl Status {
    /// Whether anything may still happen to a ticket in this status.
    pub(super) fn is_live(self) -> bool {
        !matches!(self, Self::Closed | Self::Deleted)
    }

    /// Whether `self → to` is one of the moves that ChangeStatus makes.
    pub(super) fn may_become(self, to: Self) -> bool {
        matches!(
            (self, to),
            (Self::New | Self::PendingCustomer | Self::OnHold, Self::Open) | (Self::Open, Self::PendingCustomer | Self::OnHold)
        )
    }
}
