//! Figures: a measured value, the reference beside it, and whether the target is met.
//!
//! Must not know: how anything is measured.

use std::io::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Value at most.
    AtMost(f64),
    /// Ratio to the reference at least.
    Ratio(f64),
    /// Value and ratio at least; a ratio of 0 for the value alone.
    Both(f64, f64),
    /// Nothing: for information.
    None,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(value) => write!(f, "<= {value}"),
            Self::Ratio(ratio) => write!(f, ">= {ratio} of the reference"),
            Self::Both(value, ratio) => write!(f, ">= {value} and >= {ratio} of the reference"),
            Self::None => Ok(()),
        }
    }
}

/// One line of a bench.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Name of the bench.
    pub bench: &'static str,
    /// Name of the figure.
    pub figure: String,
    /// Conditions, where a figure has several.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub case: String,
    /// Median.
    pub value: f64,
    /// Of the value.
    pub unit: &'static str,
    /// What it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_value: Option<f64>,
    /// Median of the pairs' ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// First quartile of the ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_q1: Option<f64>,
    /// Third quartile of the ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_q3: Option<f64>,
    /// Number of samples, or of interleaved pairs.
    pub samples: usize,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether the target is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// An empty histogram of microseconds, up to two minutes.
pub fn latencies() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, 120_000_000, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constant bounds: {error}"),
    }
}

/// The value at `fraction` of the sorted values, interpolated. NaN if there is none.
pub fn quantile(values: &[f64], fraction: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = fraction * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// See [`quantile`].
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

impl Figure {
    /// A figure without a reference.
    pub fn alone(
        bench: &'static str,
        figure: &str,
        unit: &'static str,
        values: &[f64],
        target: Target,
    ) -> Self {
        let value = median(values);
        Self {
            bench,
            figure: figure.to_owned(),
            case: String::new(),
            value,
            unit,
            reference: None,
            reference_value: None,
            ratio: None,
            ratio_q1: None,
            ratio_q3: None,
            samples: values.len(),
            target: (target != Target::None).then(|| target.to_string()),
            met: match target {
                Target::AtMost(most) => Some(value <= most),
                Target::Ratio(_) | Target::Both(..) => Some(false),
                Target::None => None,
            },
        }
    }

    /// A figure from interleaved pairs (own value, value of the reference).
    pub fn paired(
        bench: &'static str,
        figure: &str,
        unit: &'static str,
        reference: &str,
        pairs: &[(f64, f64)],
        target: Target,
    ) -> Self {
        let own: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
        let other: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
        let ratios: Vec<f64> = pairs.iter().map(|(own, other)| own / other).collect();
        let mut line = Self::alone(bench, figure, unit, &own, target);
        let ratio = median(&ratios);
        line.reference = Some(reference.to_owned());
        line.reference_value = Some(median(&other));
        line.ratio = Some(ratio);
        line.ratio_q1 = Some(quantile(&ratios, 0.25));
        line.ratio_q3 = Some(quantile(&ratios, 0.75));
        match target {
            Target::Ratio(least) => line.met = Some(ratio >= least),
            Target::Both(value, least) => line.met = Some(line.value >= value && ratio >= least),
            _ => {}
        }
        line
    }

    /// Adds the conditions.
    pub fn case(mut self, case: impl Into<String>) -> Self {
        self.case = case.into();
        self
    }
}

/// Where figures go: JSON lines, or a table for people; notes always to standard error.
#[derive(Debug)]
pub struct Report {
    json: bool,
    /// All that was reported.
    pub figures: Vec<Figure>,
}

impl Report {
    /// An empty report.
    pub fn new(json: bool) -> Self {
        Self { json, figures: Vec::new() }
    }

    /// A remark: a peer's configuration, something that was skipped.
    pub fn note(&self, text: &str) {
        eprintln!("# {text}");
    }

    /// Prints a figure.
    pub fn add(&mut self, figure: Figure) {
        let mut out = std::io::stdout().lock();
        let written = if self.json {
            writeln!(out, "{}", serde_json::to_string(&figure).unwrap_or_default())
        } else {
            writeln!(out, "{}", row(&figure))
        };
        // A closed pipe is the reader's choice.
        let _ = written.and_then(|()| out.flush());
        self.figures.push(figure);
    }
}

fn row(figure: &Figure) -> String {
    let mut text = format!("{:9} {:28}", figure.bench, figure.figure);
    if !figure.case.is_empty() {
        text += &format!(" {:34}", figure.case);
    }
    text += &format!(" {:>12} {}", rounded(figure.value), figure.unit);
    if let (Some(reference), Some(value), Some(ratio)) =
        (&figure.reference, figure.reference_value, figure.ratio)
    {
        text += &format!(
            "; {ratio:.3} of {reference} ({}), quartiles {:.3} to {:.3}",
            rounded(value),
            figure.ratio_q1.unwrap_or(f64::NAN),
            figure.ratio_q3.unwrap_or(f64::NAN),
        );
    }
    if let Some(target) = &figure.target {
        let verdict = if figure.met == Some(true) { "met" } else { "MISSED" };
        text += &format!("; target {target}: {verdict}");
    }
    text
}

fn rounded(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && digit != '-' && (digits.len() - i).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(median(&values), 3.0);
        assert_eq!(quantile(&values, 0.25), 2.0);
        assert_eq!(quantile(&values, 0.75), 4.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn latencies_are_not_clamped() {
        let mut histogram = latencies();
        histogram.saturating_record(3_000_000);
        assert!(histogram.max() >= 3_000_000);
    }

    #[test]
    fn a_ratio_is_the_median_of_the_pairs() {
        let pairs = [(1.0, 2.0), (30.0, 10.0), (3.0, 4.0)];
        let figure = Figure::paired("b", "f", "1/s", "peer", &pairs, Target::Ratio(0.75));
        assert_eq!((figure.ratio, figure.met), (Some(0.75), Some(true)));
        let figure = Figure::paired("b", "f", "1/s", "peer", &pairs, Target::Both(3.1, 0.7));
        assert_eq!(figure.met, Some(false));
    }

    #[test]
    fn nothing_measured_meets_nothing() {
        assert_eq!(Figure::alone("b", "f", "us", &[], Target::AtMost(5.0)).met, Some(false));
        assert_eq!(Figure::paired("b", "f", "us", "p", &[], Target::Ratio(0.0)).met, Some(false));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(rounded(1234567.4), "1,234,567");
        assert_eq!(rounded(99.0), "99.00");
        assert_eq!(rounded(-1234.0), "-1,234");
    }
}
