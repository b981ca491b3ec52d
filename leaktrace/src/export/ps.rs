//! A listing of processes as JSON.
//!
//! # Schema `leaktrace.ps/1`
//! One object: `schema` `time` `host` `watched_ns` `host_problem` (why nothing can be traced here, or null) `processes`
//! `cut` (how many `--top` left out). A process: `pid` `comm` `container` (as in leaktrace.snapshot/1) `allocators`
//! (names) `rss_bytes` `anonymous_bytes` `growth_bytes_per_second` (of anonymous memory) `traceable` `problem` (why not,
//! or null). What is not known is null.
use serde::Serialize;

use super::json::{ContainerJson, Time, line};
use crate::model::listing::{Listed, Listing};

#[derive(Serialize)]
struct ListingJson<'a> {
    schema: &'static str,
    time: Time,
    host: &'a str,
    watched_ns: u64,
    host_problem: Option<&'a str>,
    processes: Vec<ListedJson<'a>>,
    cut: u64,
}

#[derive(Serialize)]
struct ListedJson<'a> {
    pid: u32,
    comm: &'a str,
    container: Option<ContainerJson<'a>>,
    allocators: &'a [String],
    rss_bytes: Option<u64>,
    anonymous_bytes: Option<u64>,
    growth_bytes_per_second: Option<f64>,
    traceable: bool,
    problem: Option<&'a str>,
}

/// One line, newline included.
pub fn listing(listing: &Listing) -> String {
    let host_problem = listing.host_problem.as_deref();
    line(&ListingJson {
        schema: "leaktrace.ps/1",
        time: Time(listing.time),
        host: &listing.host,
        watched_ns: listing.watched_ns,
        host_problem,
        processes: listing.processes.iter().map(|process| of_process(process, host_problem)).collect(),
        cut: listing.cut,
    })
}

fn of_process<'a>(process: &'a Listed, host_problem: Option<&'a str>) -> ListedJson<'a> {
    let problem = process.problem.as_deref().or(host_problem);
    ListedJson {
        pid: process.pid,
        comm: &process.comm,
        container: process.container.as_ref().map(ContainerJson::from),
        allocators: &process.allocators,
        rss_bytes: process.rss_bytes,
        anonymous_bytes: process.anonymous_bytes,
        growth_bytes_per_second: process.growth_bytes_per_second,
        traceable: problem.is_none(),
        problem,
    }
}
