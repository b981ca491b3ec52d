//! What changed between two snapshots, site by site. Sites are matched by their ids alone, so that a restart, other
//! pids and several processes of one program do not matter: the sites of all processes with one id are one row.
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::snapshot::{Finding, Frame, Mode, SiteKind, SiteView, Snapshot, TargetView, Totals, WallNs};

/// One of the two snapshots.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// When it was taken.
    pub time: WallNs,
    /// When its tracing began.
    pub since: WallNs,
    /// Host name.
    pub host: String,
    /// How allocations were recorded.
    pub mode: Mode,
    /// Its processes.
    pub processes: Vec<Process>,
    /// Sums over the sites of both kinds, those that were cut included.
    pub totals: Totals,
    /// Sites that were cut and cannot be compared.
    pub sites_cut: u64,
}

/// A process in one of the snapshots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its name. Hostile: escape before printing.
    pub comm: String,
    /// Process id.
    pub pid: u32,
    /// When it started.
    pub start_time: WallNs,
}

/// A site in both snapshots.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// See [`super::site_id`].
    pub id: String,
    /// What it allocates.
    pub kind: SiteKind,
    /// In the older snapshot; zeros where it was not in it.
    pub old: Totals,
    /// In the newer snapshot; zeros where it was not in it.
    pub new: Totals,
    /// Names of the processes that it is in, in either snapshot, and how many there are in the newer one.
    pub processes: BTreeMap<String, u64>,
    /// The surest verdict of the newer snapshot.
    pub finding: Option<Finding>,
    /// Its stack, from the newer snapshot where it is in that.
    pub frames: Arc<[Frame]>,
    /// Why the stack ends where it does.
    pub stack_end: &'static str,
}

/// Two snapshots compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    /// The older one.
    pub old: Side,
    /// The newer one.
    pub new: Side,
    /// Sites that hold more or less than before; what grew most comes first, what shrank most last.
    pub rows: Vec<Row>,
    /// Sites that hold what they held.
    pub unchanged: u64,
}

impl Row {
    /// Change of the outstanding bytes.
    pub fn bytes(&self) -> i64 {
        difference(self.old.outstanding_bytes, self.new.outstanding_bytes)
    }

    /// Change of the outstanding blocks.
    pub fn count(&self) -> i64 {
        difference(self.old.outstanding_count, self.new.outstanding_count)
    }

    /// Half width of the 95 % interval of [`Row::bytes`]; 0 when exact.
    pub fn error_bytes(&self) -> u64 {
        (self.old.error_bytes as f64).hypot(self.new.error_bytes as f64) as u64
    }

    /// Whether it holds more than before: bytes, or as many bytes in more blocks.
    pub fn has_grown(&self) -> bool {
        (self.bytes(), self.count()) > (0, 0)
    }
}

/// `new - old`, at the limits of the type where it does not fit.
pub fn difference(old: u64, new: u64) -> i64 {
    i64::try_from(i128::from(new) - i128::from(old)).unwrap_or(if new > old { i64::MAX } else { i64::MIN })
}

impl Diff {
    /// Whether some process of the newer snapshot is in the older one too: the same pid with the same start.
    pub fn is_one_run(&self) -> bool {
        let old: Vec<_> =
            self.old.processes.iter().map(|process| (process.pid, process.start_time)).collect();
        self.new.processes.iter().any(|process| old.contains(&(process.pid, process.start_time)))
    }
}

/// Compares.
pub fn diff(old: &Snapshot, new: &Snapshot) -> Diff {
    let mut rows: HashMap<(&str, SiteKind), Row> = HashMap::new();
    for (target, site) in sites(old) {
        let row = row(&mut rows, site);
        row.old.add(&site.totals);
        row.processes.entry(target.comm.clone()).or_default();
    }
    for (target, site) in sites(new) {
        let row = row(&mut rows, site);
        row.new.add(&site.totals);
        *row.processes.entry(target.comm.clone()).or_default() += 1;
        let surer = |a: &Option<Finding>| a.as_ref().map(|finding| finding.confidence);
        if surer(&site.finding) > surer(&row.finding) {
            row.finding.clone_from(&site.finding);
        }
        if row.frames.is_empty() || row.frames.iter().all(|frame| frame.function.is_none()) {
            row.frames = Arc::clone(&site.frames);
            row.stack_end = site.stack_end;
        }
    }
    let all = rows.len() as u64;
    let mut rows: Vec<Row> = rows.into_values().filter(|row| (row.bytes(), row.count()) != (0, 0)).collect();
    rows.sort_by(|a, b| {
        b.bytes().cmp(&a.bytes()).then_with(|| b.count().cmp(&a.count())).then_with(|| a.id.cmp(&b.id))
    });
    Diff { old: side(old), new: side(new), unchanged: all - rows.len() as u64, rows }
}

fn sites(snapshot: &Snapshot) -> impl Iterator<Item = (&TargetView, &SiteView)> {
    snapshot.targets.iter().flat_map(|target| target.sites.iter().map(move |site| (target, site)))
}

fn row<'r, 's>(rows: &'r mut HashMap<(&'s str, SiteKind), Row>, site: &'s SiteView) -> &'r mut Row {
    rows.entry((&site.id, site.kind)).or_insert_with(|| Row {
        id: site.id.clone(),
        kind: site.kind,
        old: Totals::default(),
        new: Totals::default(),
        processes: BTreeMap::new(),
        finding: None,
        frames: Arc::clone(&site.frames),
        stack_end: site.stack_end,
    })
}

fn side(snapshot: &Snapshot) -> Side {
    let mut totals = Totals::default();
    for (_, site) in sites(snapshot) {
        totals.add(&site.totals);
    }
    let mut processes: Vec<Process> = snapshot
        .targets
        .iter()
        .map(|target| {
            totals.add(&target.cut_totals);
            Process { comm: target.comm.clone(), pid: target.pid, start_time: target.start_time }
        })
        .collect();
    processes.sort();
    Side {
        time: snapshot.time,
        since: snapshot.since,
        host: snapshot.host.clone(),
        mode: snapshot.mode,
        processes,
        totals,
        sites_cut: snapshot.targets.iter().map(|target| target.sites_cut).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::Confidence;

    fn site(id: &str, bytes: u64, count: u64) -> SiteView {
        SiteView {
            id: id.to_owned(),
            totals: Totals { outstanding_bytes: bytes, outstanding_count: count, ..Totals::default() },
            ..SiteView::default()
        }
    }

    fn snapshot(targets: Vec<(u32, Vec<SiteView>)>) -> Snapshot {
        let targets = targets.into_iter().map(|(pid, sites)| TargetView {
            pid,
            comm: "shop".to_owned(),
            sites,
            ..TargetView::default()
        });
        Snapshot { targets: targets.collect(), ..Snapshot::default() }
    }

    #[test]
    fn what_grew_most_comes_first_and_what_shrank_most_last() {
        let old =
            snapshot(vec![(1, vec![site("a", 10, 1), site("b", 50, 2), site("c", 7, 1), site("d", 9, 1)])]);
        let new =
            snapshot(vec![(2, vec![site("a", 30, 2), site("c", 7, 1), site("d", 9, 3), site("e", 100, 1)])]);
        let diff = diff(&old, &new);
        let rows: Vec<_> = diff.rows.iter().map(|row| (row.id.as_str(), row.bytes(), row.count())).collect();
        assert_eq!(rows, [("e", 100, 1), ("a", 20, 1), ("d", 0, 2), ("b", -50, -2)]);
        assert_eq!(diff.rows.iter().filter(|row| row.has_grown()).count(), 3);
        assert_eq!(diff.unchanged, 1);
        assert!(!diff.is_one_run());
    }

    #[test]
    fn the_sites_of_several_processes_with_one_id_are_one_row() {
        let finding =
            |confidence| Some(Finding { confidence, evidence: String::new(), growth_bytes_per_second: None });
        let mut first = site("a", 5, 1);
        first.finding = finding(Confidence::Low);
        let mut second = site("a", 6, 1);
        second.finding = finding(Confidence::High);
        let old = snapshot(vec![(1, vec![site("a", 1, 1)])]);
        let new = snapshot(vec![(1, vec![first]), (3, vec![second, site("a", 1, 1)])]);
        let diff = diff(&old, &new);
        assert_eq!((diff.rows.len(), diff.rows[0].bytes(), diff.rows[0].processes["shop"]), (1, 11, 3));
        assert_eq!(diff.rows[0].finding.as_ref().map(|finding| finding.confidence), Some(Confidence::High));
        assert!(diff.is_one_run());
    }

    #[test]
    fn a_heap_site_and_a_mapping_with_one_id_are_two_rows() {
        let mapping = SiteView { kind: SiteKind::Mapping, ..site("a", 5, 1) };
        let diff = diff(&snapshot(vec![]), &snapshot(vec![(1, vec![site("a", 5, 1), mapping])]));
        assert_eq!(diff.rows.len(), 2);
    }

    #[test]
    fn differences_beyond_the_type_stop_at_its_limits() {
        assert_eq!(difference(0, u64::MAX), i64::MAX);
        assert_eq!(difference(u64::MAX, 0), i64::MIN);
        assert_eq!(difference(5, 3), -2);
    }
}
