//! Which series there are, and that hostile names stay within theirs.
use super::*;
use crate::model::snapshot::{Frame, Snapshot};

fn site(id: &str, outstanding_bytes: u64) -> SiteView {
    SiteView {
        id: id.to_owned(),
        totals: Totals { outstanding_bytes, ..Totals::default() },
        frames: vec![Frame { function: Some("f<\"x\">\n".to_owned()), ..Frame::default() }].into(),
        ..SiteView::default()
    }
}

fn view() -> View {
    let mut target = TargetView {
        pid: 7,
        comm: "evil\"\n} 1\n\u{1b}\\".to_owned(),
        sites: vec![site("a", 1), site("b", 30), site("c", 20)],
        ..TargetView::default()
    };
    target.totals.outstanding_bytes = 61;
    target.cut_totals.outstanding_bytes = 10;
    let snapshot = Snapshot { targets: vec![target], ..Snapshot::default() };
    View { snapshot: Arc::new(snapshot), ..View::default() }
}

fn written(top: usize, format: Format) -> String {
    page(Arc::new(view()), top, format).unwrap()
}

#[test]
fn the_largest_sites_are_shown_and_the_rest_is_summed() {
    let page = written(2, Format::Text);
    let sites: Vec<&str> = page.lines().filter(|line| line.starts_with("leaktrace_site_")).collect();
    assert_eq!(sites.len(), 3, "{sites:?}");
    assert!(sites[0].contains("site=\"b\"") && sites[0].ends_with(" 30"), "{sites:?}");
    assert!(sites[2].contains("site=\"other\"") && sites[2].ends_with(" 11"), "{sites:?}");
}

#[test]
fn hostile_names_stay_within_their_label() {
    for format in [Format::Text, Format::OpenMetrics] {
        let page = written(1, format);
        assert!(page.contains(r#"comm="evil\"\n} 1\n�\\","#), "{page}");
        assert!(page.lines().all(|line| line.starts_with("leaktrace_") || line.starts_with("# ")), "{page}");
    }
}

#[test]
fn counters_end_in_total_and_units_are_declared() {
    let text = written(1, Format::Text);
    assert!(text.contains("# TYPE leaktrace_target_freed_bytes_total counter\n"));
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    let open = written(1, Format::OpenMetrics);
    assert!(open.contains(
        "# TYPE leaktrace_target_freed_bytes counter\n# UNIT leaktrace_target_freed_bytes bytes\n"
    ));
    assert!(open.contains("\nleaktrace_target_freed_bytes_total{pid=\"7\""));
    assert!(open.ends_with("# EOF\n"));
    for loss in ["blocks_full", "sites_full", "events_dropped", "lost_returns"] {
        assert!(text.contains(&format!("leaktrace_losses_total{{cause=\"{loss}\"}} 0")), "{loss}");
    }
}

#[test]
fn openmetrics_is_sent_only_when_asked_for() {
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
    for other in ["", "*/*", "text/plain", "application/openmetrics-text;q=0", "application/json"] {
        assert_eq!(Format::accepted(other), Format::Text, "{other}");
    }
}

#[test]
fn a_number_beyond_what_the_encoder_takes_does_not_cost_the_page() {
    let target = TargetView { rss_bytes: Some(u64::MAX), ..TargetView::default() };
    let snapshot = Arc::new(Snapshot { targets: vec![target], ..Snapshot::default() });
    let page = page(Arc::new(View { snapshot, ..View::default() }), 1, Format::Text).unwrap();
    assert!(page.contains(&format!(
        "\nleaktrace_target_rss_bytes{{pid=\"0\",comm=\"\",container=\"\"}} {}\n",
        i64::MAX
    )));
}
