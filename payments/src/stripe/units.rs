//! Amounts as Stripe writes them (docs.stripe.com/currencies). Stripe's minor units are not those of ISO 4217 for every currency, and some amounts it cannot charge.

use domain::billing::money::{Currency, Money};

/// The presentment currencies that Stripe lists, without those that ISO 4217 has withdrawn.
const LISTED: &str = "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BWP BYN BZD CAD CDF CHF CLP CNY COP CRC CVE CZK DJF DKK DOP DZD EGP ETB EUR FJD FKP \
    GBP GEL GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR ISK JMD JOD JPY KES KGS KHR KMF KRW KWD KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MUR MVR MWK MXN MYR MZN NAD NGN NIO \
    NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SEK SGD SHP SLE SOS SRD SZL THB TJS TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VND VUV WST XAF XCD XOF XPF YER \
    ZAR ZMW";
/// Charged in whole units, which an amount counts.
const ZERO_DECIMAL: &str = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF";
/// Charged in whole units, and written with two decimals that are zero.
const WHOLE_WITH_TWO_DECIMALS: &str = "ISK UGX";
/// Written with three decimals, the last one zero.
const THREE_DECIMAL: &str = "BHD JOD KWD OMR TND";

/// An amount that Stripe cannot charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpayable {
    /// Stripe does not list the currency.
    #[error("Stripe takes no payments in {0}")]
    Currency(Currency),
    /// The amount is finer than the currency's smallest amount at Stripe.
    #[error("Stripe charges {currency} in steps of {step}")]
    Step {
        /// The currency.
        currency: Currency,
        /// The smallest amount.
        step: Money,
    },
}

fn among(list: &str, currency: Currency) -> bool {
    list.split_whitespace().any(|code| code == currency.code())
}

/// The decimals of an amount at Stripe, and what it has to be a multiple of.
fn units(currency: Currency) -> Result<(u32, i64), Unpayable> {
    if !among(LISTED, currency) {
        Err(Unpayable::Currency(currency))
    } else if among(ZERO_DECIMAL, currency) {
        Ok((0, 1))
    } else if among(WHOLE_WITH_TWO_DECIMALS, currency) {
        Ok((2, 100))
    } else if among(THREE_DECIMAL, currency) {
        Ok((3, 10))
    } else {
        Ok((2, 1))
    }
}

/// `amount` with so many decimals written with so many others, unless something would be cut off.
fn rescale(amount: i64, from: u32, to: u32) -> Option<i64> {
    let factor = 10_i64.checked_pow(from.abs_diff(to))?;
    if to >= from { amount.checked_mul(factor) } else { (amount % factor == 0).then(|| amount / factor) }
}

/// An amount as Stripe writes it.
pub fn to_stripe(money: Money) -> Result<i64, Unpayable> {
    let Money { amount, currency } = money;
    let (decimals, multiple) = units(currency)?;
    let written = rescale(amount, currency.digits(), decimals).filter(|written| written % multiple == 0);
    written.ok_or_else(|| {
        let step = rescale(multiple, decimals, currency.digits()).unwrap_or(1);
        Unpayable::Step { currency, step: Money::new(step, currency) }
    })
}

/// The amount nearest to this one that Stripe can charge, as Stripe writes it; half a step is rounded away from zero. For what was computed: a price is refused instead.
pub fn nearest(money: Money) -> Result<i64, Unpayable> {
    let (decimals, multiple) = units(money.currency)?;
    let (numerator, denominator) = (10_i128.pow(decimals), 10_i128.pow(money.currency.digits()) * i128::from(multiple));
    let exact = i128::from(money.amount) * numerator;
    let half = if exact < 0 { -denominator } else { denominator };
    let steps = (2 * exact + half) / (2 * denominator);
    Ok(i64::try_from(steps).unwrap_or(i64::MAX).saturating_mul(multiple))
}

/// The amount that Stripe wrote so; `None` where the currency has no such amount.
pub fn from_stripe(written: i64, currency: Currency) -> Option<Money> {
    let (decimals, _) = units(currency).ok()?;
    rescale(written, decimals, currency.digits()).map(|amount| Money::new(amount, currency))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn currency(code: &str) -> Currency {
        Currency::try_from(code.to_owned()).unwrap()
    }

    /// The groups of docs.stripe.com/currencies: what 1 234 whole units are written as, and the smallest amount that can be charged as Stripe writes it.
    #[test]
    fn every_currency_that_stripe_lists_is_written_in_its_units_both_ways() {
        for code in LISTED.split_whitespace() {
            let currency = currency(code);
            let (whole, smallest) = match code {
                "BIF" | "CLP" | "DJF" | "GNF" | "JPY" | "KMF" | "KRW" | "MGA" | "PYG" | "RWF" | "VND" | "VUV" | "XAF" | "XOF" | "XPF" => {
                    (1234, 1)
                }
                "ISK" | "UGX" => (123_400, 100),
                "BHD" | "JOD" | "KWD" | "OMR" | "TND" => (1_234_000, 10),
                _ => (123_400, 1),
            };
            let money = Money::new(1234 * 10_i64.pow(currency.digits()), currency);
            assert_eq!(to_stripe(money), Ok(whole), "{code}");
            assert_eq!(from_stripe(whole, currency), Some(money), "{code}");
            let step = from_stripe(smallest, currency).unwrap();
            assert_eq!(to_stripe(step), Ok(smallest), "{code}");
            if step.amount > 1 {
                let finer = Money::new(step.amount + 1, currency);
                assert_eq!(to_stripe(finer), Err(Unpayable::Step { currency, step }), "{code}");
            }
        }
    }

    #[test]
    fn amounts_that_stripe_cannot_charge_are_refused() {
        let said = |amount, code| to_stripe(Money::new(amount, currency(code))).map_err(|error| error.to_string());
        assert_eq!(said(1_000_000, "MGA"), Ok(10_000));
        assert_eq!(said(1_000_050, "MGA"), Err("Stripe charges MGA in steps of 1.00 MGA".into()));
        assert_eq!(said(2905, "KWD"), Err("Stripe charges KWD in steps of 0.010 KWD".into()));
        assert_eq!(said(2910, "KWD"), Ok(2910));
        assert_eq!(said(5, "ISK"), Ok(500));
        assert_eq!(said(1045, "HUF"), Ok(1045));
        assert_eq!(said(1, "IQD"), Err("Stripe takes no payments in IQD".into()));
        assert_eq!(from_stripe(550, currency("ISK")), None);
        let nearest = |amount, code: &str| nearest(Money::new(amount, currency(code))).ok();
        assert_eq!((nearest(2905, "KWD"), nearest(2904, "KWD"), nearest(-2905, "KWD")), (Some(2910), Some(2900), Some(-2910)));
        assert_eq!((nearest(149, "MGA"), nearest(150, "MGA"), nearest(5, "ISK")), (Some(1), Some(2), Some(500)));
        assert_eq!((nearest(1, "USD"), nearest(1, "IQD")), (Some(1), None));
    }
}
