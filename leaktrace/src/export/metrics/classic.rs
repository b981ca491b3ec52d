//! The text format 0.0.4 from an OpenMetrics page: samples are the same, what is said about families is not. Pure.
use std::fmt::Write as _;

/// The same page in the older format.
///
/// There a family has the name of its samples, with `_total` or `_info`; an info is a gauge; quotes in help texts are
/// bare; units and the end are not said.
pub(super) fn page(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    let mut help = "";
    for line in open.lines() {
        let Some(said) = line.strip_prefix('#') else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        match said.trim_start().split_once(' ') {
            // Written with the type, which says what the family is called.
            Some(("HELP", text)) => help = text,
            Some(("TYPE", text)) => {
                let (name, kind) = text.rsplit_once(' ').unwrap_or((text, "untyped"));
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    other => ("", other),
                };
                if let Some(help) = help.strip_prefix(name).and_then(|help| help.strip_prefix(' ')) {
                    // Writing to a String cannot fail.
                    let _ = writeln!(out, "# HELP {name}{suffix} {}", help.replace("\\\"", "\""));
                }
                let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_the_names_of_their_samples() {
        let open = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"1\"} 2\n\
                    # HELP b Built.\n# TYPE b info\nb_info{version=\"1\"} 1\n\
                    # HELP c Some.\n# TYPE c gauge\nc 3.5\n# EOF\n";
        assert_eq!(
            page(open),
            "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total{x=\"1\"} 2\n\
             # HELP b_info Built.\n# TYPE b_info gauge\nb_info{version=\"1\"} 1\n\
             # HELP c Some.\n# TYPE c gauge\nc 3.5\n"
        );
    }

    #[test]
    fn quotes_are_bare_in_help_texts_and_stay_escaped_in_labels() {
        let open = "# HELP a As b=\\\"c\\\" \\\\ d.\n# TYPE a gauge\na{b=\"\\\"\\n\"} 1\n# EOF\n";
        assert_eq!(page(open), "# HELP a As b=\"c\" \\\\ d.\n# TYPE a gauge\na{b=\"\\\"\\n\"} 1\n");
    }

    #[test]
    fn a_sample_that_looks_like_a_comment_within_its_label_stays() {
        let open = "# TYPE a gauge\na{b=\"# EOF # TYPE x counter\"} 1\n# EOF\n";
        assert_eq!(page(open), "# TYPE a gauge\na{b=\"# EOF # TYPE x counter\"} 1\n");
    }

    #[test]
    fn a_family_without_samples_is_still_declared() {
        assert_eq!(
            page("# HELP a A.\n# TYPE a counter\n# EOF\n"),
            "# HELP a_total A.\n# TYPE a_total counter\n"
        );
        assert_eq!(page("# EOF\n"), "");
    }
}
