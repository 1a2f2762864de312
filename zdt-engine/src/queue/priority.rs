//! How urgent a request is, from its header fields.
//!
//! Must not know: how requests are kept.

use serde::{Deserialize, Serialize};

/// Levels of priority.
pub const LEVELS: usize = 8;

/// From 0, the default, to 7. A request of a higher priority is replayed before all lower ones.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Priority(u8);

impl Priority {
    /// What a request has that says nothing.
    pub const LOWEST: Self = Self(0);
    /// What `x-urgent: true` means.
    pub const HIGHEST: Self = Self(LEVELS as u8 - 1);

    /// That level, or the highest if there are not so many.
    pub fn new(level: u64) -> Self {
        Self(level.min(LEVELS as u64 - 1) as u8)
    }

    /// 0 to 7.
    pub fn level(self) -> usize {
        usize::from(self.0)
    }

    /// What one header field's value means: a decimal number is a level (7 and above is the highest);
    /// `true`, `yes`, `on`, `high`, `urgent` and `critical`, in any case, are the highest; anything
    /// else is the lowest, since whoever writes nonsense gets no advantage.
    pub fn of_value(value: &[u8]) -> Self {
        let value = value.trim_ascii();
        const URGENT: [&[u8]; 6] = [b"true", b"yes", b"on", b"high", b"urgent", b"critical"];
        if URGENT.iter().any(|word| value.eq_ignore_ascii_case(word)) {
            return Self::HIGHEST;
        }
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Self::LOWEST;
        }
        let level = value.iter().fold(0u64, |number, digit| {
            number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
        });
        Self::new(level)
    }

    /// The highest that any of the named fields asks for. Names in any case.
    pub fn of_headers<'h>(
        names: &[String],
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    ) -> Self {
        if names.is_empty() {
            return Self::LOWEST;
        }
        headers
            .into_iter()
            .filter(|(name, _)| names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name)))
            .map(|(_, value)| Self::of_value(value))
            .max()
            .unwrap_or(Self::LOWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::Priority;

    #[test]
    fn values_mean_what_the_page_says() {
        let cases: [(&[u8], usize); 12] = [
            (b"0", 0),
            (b"1", 1),
            (b" 7 ", 7),
            (b"8", 7),
            (b"99999999999999999999999", 7),
            (b"true", 7),
            (b"URGENT", 7),
            (b"false", 0),
            (b"-1", 0),
            (b"1.5", 0),
            (b"", 0),
            (b"\xff", 0),
        ];
        for (value, level) in cases {
            assert_eq!(Priority::of_value(value).level(), level, "{value:?}");
        }
    }

    #[test]
    fn the_highest_of_the_named_fields_counts() {
        let names = ["x-priority".to_owned(), "x-urgent".to_owned()];
        let headers = [("X-Priority", &b"2"[..]), ("other", b"7"), ("x-urgent", b"3")];
        assert_eq!(Priority::of_headers(&names, headers).level(), 3);
        assert_eq!(Priority::of_headers(&[], headers), Priority::LOWEST);
        assert_eq!(Priority::of_headers(&names, [("other", &b"7"[..])]), Priority::LOWEST);
    }
}
