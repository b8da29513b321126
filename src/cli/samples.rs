//! A parser of the part of Prometheus' text format that the relay writes. Pure.

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample<'t> {
    labels: &'t str,
    pub(super) value: f64,
}

/// The samples of the metric of that name.
pub(super) fn of<'t>(text: &'t str, name: &str) -> Vec<Sample<'t>> {
    let sample = |line: &'t str| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let labels = if labels.is_empty() { "" } else { labels.strip_prefix('{')?.strip_suffix('}')? };
        Some(Sample { labels, value: value.parse().ok()? })
    };
    text.lines().filter_map(sample).collect()
}

impl<'t> Sample<'t> {
    /// The value of a label. The relay's labels are names and words without quotes.
    pub(super) fn label(&self, key: &str) -> Option<&'t str> {
        let mut labels = self.labels.split(',').filter_map(|label| label.split_once('='));
        labels.find(|(name, _)| *name == key).map(|(_, value)| value.trim_matches('"'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_and_without_labels() {
        let text = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{account=\"shop\",kind=\"text\"} 3\n\
                    a_total{account=\"b\",kind=\"scan\"} 4.5\na_total_more 9\nup 1\n";
        let found = of(text, "a_total");
        assert_eq!(found.iter().map(|sample| sample.value).collect::<Vec<_>>(), [3.0, 4.5]);
        assert_eq!((found[0].label("account"), found[0].label("kind")), (Some("shop"), Some("text")));
        assert_eq!(found[1].label("result"), None);
        assert_eq!(of(text, "up"), [Sample { labels: "", value: 1.0 }]);
    }
}
