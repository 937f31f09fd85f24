//! Amounts of money: integers in the minor unit of an ISO 4217 currency.

use std::fmt;

use iso_currency::Currency as Iso;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An ISO 4217 currency that money can be paid in, by its alphabetic code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency(Iso);

/// The text is no code of a currency that money can be paid in.
#[derive(Debug, thiserror::Error)]
#[error("must be the code of an ISO 4217 currency that is in use, such as USD")]
pub struct NoCurrency;

impl Currency {
    /// The US dollar.
    pub const USD: Self = Self(Iso::USD);

    /// How many decimal digits its minor unit has: 2 for USD, 0 for JPY, 3 for KWD.
    pub fn digits(self) -> u32 {
        u32::from(self.0.exponent().unwrap_or(0))
    }

    /// Its code, such as `USD`.
    pub fn code(self) -> &'static str {
        self.0.code()
    }
}

impl TryFrom<String> for Currency {
    type Error = NoCurrency;

    fn try_from(code: String) -> Result<Self, NoCurrency> {
        // Gold, test codes and accounting units have a code but no minor unit; nobody pays in them.
        let currency = Iso::from_code(&code).filter(|iso| iso.exponent().is_some() && iso.is_superseded().is_none() && !iso.is_fund());
        currency.map(Self).ok_or(NoCurrency)
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.code().to_owned()
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// An amount of money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// In the currency's minor unit: cents for USD, yen for JPY.
    #[schema(example = 2900)]
    pub amount: i64,
    /// ISO 4217.
    #[schema(value_type = String, example = "USD", min_length = 3, max_length = 3)]
    pub currency: Currency,
}

impl Money {
    /// So much.
    pub const fn new(amount: i64, currency: Currency) -> Self {
        Self { amount, currency }
    }

    /// The same amount `part` / `whole` times, rounded half away from zero, `quantity` times.
    #[must_use]
    pub fn share(self, quantity: u32, part: i64, whole: i64) -> Self {
        let (whole, exact) = (i128::from(whole.max(1)), i128::from(self.amount) * i128::from(quantity) * i128::from(part));
        let half = if exact < 0 { -whole } else { whole };
        let rounded = (2 * exact + half) / (2 * whole);
        Self { amount: i64::try_from(rounded).unwrap_or(if exact < 0 { i64::MIN } else { i64::MAX }), ..self }
    }
}

impl fmt::Display for Money {
    /// `29.00 USD`: as people write it, by the currency's own digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, amount) = (if self.amount < 0 { "-" } else { "" }, self.amount.unsigned_abs());
        let digits = self.currency.digits() as usize;
        let unit = 10_u64.pow(self.currency.digits());
        match digits {
            0 => write!(f, "{sign}{amount} {}", self.currency),
            _ => write!(f, "{sign}{}.{:0digits$} {}", amount / unit, amount % unit, self.currency),
        }
    }
}

/// What so many units cost: 0.015 USD for one is 1 500 cents for 1 000, so that nothing has to be rounded before there is something to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnitPrice {
    /// In the minor unit of the plan's currency.
    #[schema(minimum = 0, example = 1500)]
    pub amount: u32,
    /// For so many units.
    #[schema(value_type = u32, minimum = 1, example = 1000)]
    pub per: std::num::NonZeroU32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_has_the_minor_units_of_its_currency() {
        let money = |amount, code: &str| Money::new(amount, Currency::try_from(code.to_owned()).unwrap()).to_string();
        assert_eq!(money(2900, "USD"), "29.00 USD");
        assert_eq!(money(-5, "EUR"), "-0.05 EUR");
        assert_eq!(money(2900, "JPY"), "2900 JPY");
        assert_eq!(money(2900, "KWD"), "2.900 KWD");
        for no in ["usd", "US", "XXX", "XAU", "XTS", "BOV", "DEM", "ZZZ", ""] {
            assert!(Currency::try_from(no.to_owned()).is_err(), "{no}");
        }
    }

    #[test]
    fn a_share_is_rounded_half_away_from_zero_and_never_overflows() {
        let share = |amount, quantity, part, whole| Money::new(amount, Currency::USD).share(quantity, part, whole).amount;
        assert_eq!(share(2900, 1, 10, 31), 935);
        assert_eq!((share(1, 1, 1, 2), share(-1, 1, 1, 2), share(1, 1, 1, 3)), (1, -1, 0));
        assert_eq!(share(2900, 3, 31, 31), 8700);
        assert_eq!(share(i64::MAX, u32::MAX, 31, 1), i64::MAX);
        assert_eq!(share(100, 1, 1, 0), 100);
    }
}
