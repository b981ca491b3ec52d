//! A snapshot put into another order and cut to its first sites, for showing what is kept whole in a file.
use super::{
    ranked::{Rank, compare_ranks},
    sites::Order,
    snapshot::{SiteView, Snapshot},
};

impl Snapshot {
    /// Orders the sites of every process and keeps the first `top` of each, 0 for all; the others are added to
    /// what was cut before.
    pub fn cut(&mut self, order: Order, top: usize) {
        self.order_and_cut(order, top, false);
    }

    /// The same with findings before all others: what a verdict rests on is shown first.
    pub fn cut_findings_first(&mut self, order: Order, top: usize) {
        self.order_and_cut(order, top, true);
    }

    fn order_and_cut(&mut self, order: Order, top: usize, findings_first: bool) {
        for target in &mut self.targets {
            target.sites.sort_by(|a, b| {
                let comes_later = |site: &SiteView| findings_first && site.finding.is_none();
                comes_later(a)
                    .cmp(&comes_later(b))
                    .then_with(|| compare_ranks(&rank(a), &rank(b), order))
                    .then_with(|| a.id.cmp(&b.id))
            });
            let kept = if top == 0 { target.sites.len() } else { top.min(target.sites.len()) };
            for site in target.sites.drain(kept..) {
                target.sites_cut = target.sites_cut.saturating_add(1);
                target.cut_totals.add(&site.totals);
            }
        }
    }
}

fn rank(site: &SiteView) -> Rank<'_> {
    Rank {
        totals: &site.totals,
        growth_bytes_per_second: site.growth_bytes_per_second,
        oldest_age_ns: site.oldest_age_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::{Confidence, Finding, TargetView, Totals};

    fn site(id: &str, outstanding_bytes: u64, oldest_age_ns: u64) -> SiteView {
        SiteView {
            id: id.to_owned(),
            totals: Totals { outstanding_bytes, outstanding_count: 1, ..Totals::default() },
            oldest_age_ns: Some(oldest_age_ns),
            ..SiteView::default()
        }
    }

    #[test]
    fn what_is_cut_is_summed_up() {
        let sites = vec![site("c", 1, 30), site("b", 5, 10), site("a", 5, 20)];
        let whole =
            Snapshot { targets: vec![TargetView { sites, ..TargetView::default() }], ..Snapshot::default() };
        let ids = |snapshot: &Snapshot| -> Vec<String> {
            snapshot.targets[0].sites.iter().map(|site| site.id.clone()).collect()
        };
        let mut cut = whole.clone();
        cut.cut(Order::Bytes, 1);
        assert_eq!(ids(&cut), ["a"]);
        assert_eq!((cut.targets[0].sites_cut, cut.targets[0].cut_totals.outstanding_bytes), (2, 6));
        let mut judged = whole.clone();
        let finding =
            Finding { confidence: Confidence::High, evidence: String::new(), growth_bytes_per_second: None };
        judged.targets[0].sites[0].finding = Some(finding);
        judged.cut_findings_first(Order::Bytes, 2);
        assert_eq!(ids(&judged), ["c", "a"]);
        let mut ordered = whole;
        ordered.cut(Order::Age, 0);
        assert_eq!(ids(&ordered), ["c", "a", "b"]);
        assert_eq!(ordered.targets[0].sites_cut, 0);
    }
}
