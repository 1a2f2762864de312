//! From when until when a certificate is valid (RFC 5280 §4.1.2.5): no library at hand tells.
//!
//! Must not know: what is done about a certificate that has expired.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Both in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before this.
    pub from_s: i64,
    /// Not after this.
    pub until_s: i64,
}

/// That of the first certificate of a PEM file.
pub fn validity(pem: &[u8]) -> Option<Validity> {
    let certificate = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, certificate, _) = element(certificate.as_ref())?;
    let (_, mut fields, _) = element(certificate)?;
    // version (tagged, optional), serialNumber, signature, issuer; then it comes.
    let (tag, _, rest) = element(fields)?;
    if tag == 0xa0 {
        fields = rest;
    }
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (_, validity, _) = element(fields)?;
    let (from_tag, from, rest) = element(validity)?;
    let (until_tag, until, _) = element(rest)?;
    Some(Validity { from_s: time(from_tag, from)?, until_s: time(until_tag, until)? })
}

/// The first DER element: tag, contents, what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=127 => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 3))?;
            (digits.iter().fold(0, |len, &digit| len << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

/// UTCTime `YYMMDDHHMMSSZ` or GeneralizedTime `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |part: &[u8]| part.iter().fold(0i64, |n, digit| n * 10 + i64::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (0x17, 12) => {
            let year = number(&digits[..2]);
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (0x18, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let (month, day) = (number(&rest[..2]), number(&rest[2..4]));
    let of_day = number(&rest[4..6]) * 3_600 + number(&rest[6..8]) * 60 + number(&rest[8..10]);
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Some((era * 146_097 + day_of_era - 719_468) * 86_400 + of_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0x17, b"700101000000Z"), Some(0));
        assert_eq!(time(0x17, b"000229120000Z"), Some(951_825_600));
        assert_eq!(time(0x18, b"21000228235959Z"), Some(4_107_542_399));
        assert_eq!(time(0x17, b"491231235959Z"), Some(2_524_607_999));
        for wrong in [&b"700101000000"[..], b"7001010000Z", b"70010100000xZ", b""] {
            assert_eq!(time(0x17, wrong), None);
        }
    }

    #[test]
    fn a_certificate_tells_its_validity() {
        let mut wanted = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
        wanted.not_before = rcgen::date_time_ymd(2020, 2, 29);
        wanted.not_after = rcgen::date_time_ymd(2070, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = wanted.self_signed(&key).unwrap().pem();
        let validity = validity(pem.as_bytes()).unwrap();
        assert_eq!(validity, Validity { from_s: 1_582_934_400, until_s: 3_155_760_000 });
    }

    #[test]
    fn hostile_bytes_do_no_harm() {
        for len in 0..40 {
            let mut bytes = vec![0x30; len];
            assert_eq!(element(&bytes).is_some(), element(&bytes).is_some());
            bytes.fill(0x83);
            assert!(element(&bytes).is_none());
        }
    }
}
