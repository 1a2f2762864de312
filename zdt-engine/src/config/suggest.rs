//! What was probably meant by a name that does not exist.
//!
//! Must not know: what the names stand for.

/// Names less alike than this are not worth a guess.
pub const SIMILAR: f64 = 0.75;
/// Names more alike than this differ by a slip of the finger.
pub const ALIKE: f64 = 0.95;

/// The most similar of the known names, if any is similar enough (from 0 to 1).
pub fn closest<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    least: f64,
) -> Option<&'a str> {
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness >= least)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::{SIMILAR, closest};

    #[test]
    fn similar_names_are_found_and_others_are_not() {
        let known = ["workers", "listen", "limits.max_connections", "max_connections"];
        assert_eq!(closest("worker", known, SIMILAR), Some("workers"));
        assert_eq!(closest("max_conections", known, SIMILAR), Some("max_connections"));
        assert_eq!(closest("colour", known, SIMILAR), None);
    }
}
