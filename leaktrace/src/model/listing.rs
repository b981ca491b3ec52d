//! Processes that can be chosen from: what `ps` shows. Values only; who gathers them is the agent.
use super::snapshot::{ContainerView, WallNs};

/// Processes at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// When.
    pub time: WallNs,
    /// Host name.
    pub host: String,
    /// How long growth was watched, in ns.
    pub watched_ns: u64,
    /// Why nothing can be traced on this host by this user: a sentence.
    pub host_problem: Option<String>,
    /// The processes, in the order asked for.
    pub processes: Vec<Listed>,
    /// Processes that were cut.
    pub cut: u64,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    /// Its id.
    pub pid: u32,
    /// Its name. Hostile.
    pub comm: String,
    /// The container that it is in.
    pub container: Option<ContainerView>,
    /// Names of the allocators in it.
    pub allocators: Vec<String>,
    /// Resident set size, where it may be read.
    pub rss_bytes: Option<u64>,
    /// The anonymous part of it.
    pub anonymous_bytes: Option<u64>,
    /// Change of that part while it was watched, per second.
    pub growth_bytes_per_second: Option<f64>,
    /// Why it cannot be traced, for a reason of its own: a sentence.
    pub problem: Option<String>,
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListOrder {
    /// Largest resident set.
    #[default]
    Rss,
    /// Fastest growth.
    Growth,
    /// Lowest id.
    Pid,
}

impl Listing {
    /// Sorts the processes, and cuts them to `top` if that is not 0.
    pub fn arrange(&mut self, order: ListOrder, top: usize) {
        self.processes.sort_by(|a, b| {
            let by = match order {
                ListOrder::Rss => b.rss_bytes.cmp(&a.rss_bytes),
                ListOrder::Growth => {
                    let growth =
                        |process: &Listed| process.growth_bytes_per_second.unwrap_or(f64::NEG_INFINITY);
                    growth(b).total_cmp(&growth(a))
                }
                ListOrder::Pid => std::cmp::Ordering::Equal,
            };
            by.then(a.pid.cmp(&b.pid))
        });
        if top > 0 && self.processes.len() > top {
            self.cut += (self.processes.len() - top) as u64;
            self.processes.truncate(top);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, rss: Option<u64>, growth: Option<f64>) -> Listed {
        Listed { pid, rss_bytes: rss, growth_bytes_per_second: growth, ..Listed::default() }
    }

    fn pids(order: ListOrder, top: usize) -> (Vec<u32>, u64) {
        let processes = vec![
            process(3, None, None),
            process(2, Some(10), Some(-1.0)),
            process(1, Some(5), Some(7.0)),
            process(4, Some(10), Some(f64::NAN)),
        ];
        let mut listing = Listing { processes, ..Listing::default() };
        listing.arrange(order, top);
        (listing.processes.iter().map(|process| process.pid).collect(), listing.cut)
    }

    #[test]
    fn they_are_sorted_and_cut_and_what_is_not_known_comes_last() {
        assert_eq!(pids(ListOrder::Rss, 0), (vec![2, 4, 1, 3], 0));
        assert_eq!(pids(ListOrder::Growth, 0), (vec![4, 1, 2, 3], 0));
        assert_eq!(pids(ListOrder::Pid, 3), (vec![1, 2, 3], 1));
    }
}
