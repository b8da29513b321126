//! A certificate's validity: the only field of X.509 that the relay parses itself, for renewal and for alerts on
//! expiry.
//!
//! The input is the operator's own file or an authority's response, already accepted by rustls; a date that cannot be
//! parsed is `None`, never an error.

/// The tags of DER (X.690) on the path to the field.
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// 21 days, in seconds.
const AHEAD: i64 = 21 * 86_400;

/// A certificate's `notBefore` and `notAfter`, in seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: i64,
    pub until: i64,
}

impl Validity {
    /// Parses a DER certificate.
    ///
    /// RFC 5280, 4.1: `Certificate { TBSCertificate { [0] version, serial, signature, issuer, validity { from, until } .. } .. }`
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let mut outer = Der(certificate).enter()?;
        let mut fields = outer.enter()?;
        if fields.0.first() == Some(&VERSION) {
            fields.next()?;
        }
        for _serial_signature_issuer in 0..3 {
            fields.next()?;
        }
        let mut validity = fields.enter()?;
        Some(Self { from: moment(validity.next()?)?, until: moment(validity.next()?)? })
    }

    /// When ACME orders the next certificate: with a third of the lifetime left, as authorities recommend.
    pub fn renewal(self) -> i64 {
        self.until - self.length() / 3
    }

    /// When it should be renewed at the latest, by ACME or otherwise: with 21 days left, or a quarter of the lifetime
    /// if that is less.
    pub fn renew_by(self) -> i64 {
        self.until - AHEAD.min(self.length() / 4)
    }

    fn length(self) -> i64 {
        self.until.saturating_sub(self.from).max(0)
    }
}

/// Parses a DER date, to seconds since the epoch.
fn moment((tag, text): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        // RFC 5280, 4.1.2.5.1: two digits mean 1950 to 2049.
        UTC_TIME if text.get(..2)? >= "50" => format!("19{text}"),
        UTC_TIME => format!("20{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let moment = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    Some(moment.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// A sequence of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value's tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0x00..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The values inside the next value, which is a SEQUENCE.
    fn enter(&mut self) -> Option<Self> {
        self.next().filter(|(tag, _)| *tag == SEQUENCE).map(|(_, content)| Der(content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn not_after(certificate: &[u8]) -> Option<i64> {
        Validity::of(certificate).map(|validity| validity.until)
    }

    fn ending(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 2, 3);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn reads_both_ways_of_writing_a_date() {
        assert_eq!(not_after(&ending(2031)), Some(1_927_843_200)); // 2031-02-03T00:00:00Z
        assert_eq!(not_after(&ending(2060)), Some(2_842_992_000)); // 2060-02-03T00:00:00Z
        let validity = Validity::of(&ending(2031)).unwrap();
        assert_eq!(validity.from, 1_577_836_800); // 2020-01-01T00:00:00Z
    }

    #[test]
    fn acme_renews_before_that_is_overdue_however_short_the_lifetime() {
        let day = 86_400;
        for (days, renewal, renew_by) in [(90, 60, 69 * day), (45, 30, 45 * day * 3 / 4), (6, 4, 6 * day * 3 / 4)] {
            let validity = Validity { from: 0, until: days * day };
            assert_eq!((validity.renewal(), validity.renew_by()), (renewal * day, renew_by), "{days} days");
        }
        assert_eq!(Validity { from: 7, until: 3 }.renewal(), 3, "of nonsense nothing is left");
    }

    #[test]
    fn a_truncated_certificate_has_no_validity() {
        let der = ending(2031);
        assert!((0..der.len()).all(|length| not_after(&der[..length]).is_none()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            Validity::of(&bytes);
        }
    }
}
