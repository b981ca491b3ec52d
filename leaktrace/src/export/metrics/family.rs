//! Families of metrics over prometheus-client's encoder: values as they are known, labels that nobody can break out of,
//! units by name. Which families there are is left to the module above.
use std::{borrow::Cow, fmt};

use prometheus_client::{
    encoding::{
        CounterValueEncoder, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelValue,
        GaugeValueEncoder, LabelValueEncoder, NoLabelSet,
    },
    metrics::MetricType,
    registry::Unit,
};

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    /// A number of something.
    Whole(u64),
    /// Anything else.
    Real(f64),
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Whole(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Value {
        Value::Whole(number as u64)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Real(number)
    }
}

impl EncodeGaugeValue for Value {
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> fmt::Result {
        match self {
            // The encoder takes signed numbers, and fails at those that do not fit.
            Value::Whole(number) => {
                EncodeGaugeValue::encode(&i64::try_from(*number).unwrap_or(i64::MAX), encoder)
            }
            Value::Real(number) => EncodeGaugeValue::encode(number, encoder),
        }
    }
}

impl EncodeCounterValue for Value {
    fn encode(&self, encoder: &mut CounterValueEncoder<'_>) -> fmt::Result {
        match self {
            Value::Whole(number) => EncodeCounterValue::encode(number, encoder),
            Value::Real(number) => EncodeCounterValue::encode(number, encoder),
        }
    }
}

/// The value of a label. The encoder writes labels as they are; names of processes and functions are hostile.
#[derive(Clone, Debug)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl<'a, T: Into<Cow<'a, str>>> From<T> for Text<'a> {
    fn from(text: T) -> Text<'a> {
        Text(text.into())
    }
}

impl EncodeLabelValue for Text<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        escape(&self.0, encoder)
    }
}

/// Backslashes, quotes and line ends escaped; other control characters, which a page has no use for, replaced.
fn escape(text: &str, out: &mut impl fmt::Write) -> fmt::Result {
    for character in text.chars() {
        match character {
            '\\' => out.write_str("\\\\")?,
            '"' => out.write_str("\\\"")?,
            '\n' => out.write_str("\\n")?,
            character if character.is_control() => out.write_char('\u{fffd}')?,
            character => out.write_char(character)?,
        }
    }
    Ok(())
}

/// Labels in the order of the page.
pub(super) type Labels<'a> = Vec<(&'static str, Text<'a>)>;

/// Writes families one after the other.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl<'a> Families<'a> {
    /// Behind what the encoder has written.
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Families<'a> {
        Families(encoder)
    }

    /// Writes a family of gauges.
    pub(super) fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, Value)>,
    ) -> fmt::Result {
        self.write(name, help, MetricType::Gauge, samples)
    }

    /// Writes a family of counters; the encoder puts `_total` behind the name of each sample.
    pub(super) fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, Value)>,
    ) -> fmt::Result {
        self.write(name, help, MetricType::Counter, samples)
    }

    /// Writes what is said by a label alone; the encoder puts `_info` behind the name of the sample.
    pub(super) fn info(&mut self, name: &str, help: &str, label: (&'static str, &str)) -> fmt::Result {
        let label = (label.0, Text::from(label.1));
        self.write(name, help, MetricType::Info, [(vec![label], Value::Whole(1))])
    }

    fn write<'l>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels<'l>, Value)>,
    ) -> fmt::Result {
        let mut escaped = String::with_capacity(help.len());
        escape(help, &mut escaped)?;
        let (base, unit) = parts(name);
        let mut family = self.0.encode_descriptor(base, &escaped, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            match kind {
                MetricType::Info => family.encode_info(&labels)?,
                MetricType::Counter if labels.is_empty() => {
                    family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
                MetricType::Counter => {
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
                _ if labels.is_empty() => family.encode_gauge(&value)?,
                _ => family.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

/// A name without its unit, and the unit: what the name ends in, if that is one. The encoder joins them again.
fn parts(name: &str) -> (&str, Option<Unit>) {
    for unit in [Unit::Bytes, Unit::Seconds, Unit::Other("ratio".to_owned())] {
        let base = name.strip_suffix(unit.as_str()).and_then(|base| base.strip_suffix('_'));
        if let Some(base) = base {
            return (base, Some(unit));
        }
    }
    (name, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_what_a_name_ends_in() {
        let unit = |name| {
            let (base, unit) = parts(name);
            (base, unit.map_or_else(String::new, |unit| unit.as_str().to_owned()))
        };
        assert_eq!(unit("x_held_bytes"), ("x_held", "bytes".to_owned()));
        assert_eq!(unit("x_since_timestamp_seconds"), ("x_since_timestamp", "seconds".to_owned()));
        assert_eq!(unit("x_used_ratio"), ("x_used", "ratio".to_owned()));
        for none in ["x_blocks", "x_bytes_per_hour", "bytes", "xbytes"] {
            assert_eq!(unit(none), (none, String::new()));
        }
    }

    #[test]
    fn escaped_text_has_no_end_of_line_no_bare_quote_and_no_other_control_character() {
        let mut out = String::new();
        escape("a\"b\\c\nd\u{1b}\r\u{85}é", &mut out).unwrap();
        assert_eq!(out, "a\\\"b\\\\c\\nd\u{fffd}\u{fffd}\u{fffd}é");
    }
}
