//! Snapshot files: gzip'd profiles in the pprof format, which `go tool pprof` and every tool of its kind opens.
//!
//! | pprof | holds |
//! |---|---|
//! | sample types | `inuse_space` (bytes, the default), `inuse_objects` (count), `alloc_space`, `alloc_objects` |
//! | period | `space` in bytes: the mean interval between samples; 1 where every call was recorded, 0 without any |
//! | time, duration | when tracing began, in ns since the Unix epoch; from then to the snapshot |
//! | sample | one site of one process; labels `pid` `comm` `site` (the site's id) `kind` (heap, mapping), in a container `container` (its name or id) and, where there is a finding, `finding` (low, medium, high) |
//! | mapping | the pages of a file that stacks lead through, with build id and file offset; the program first |
//! | location | a frame, its address inside the call instruction; one line for each inlined function, then the function itself |
//! | comments | sentences for people: host, times, mode, losses, notes |
//! | field 27764 | everything that pprof has no field for, as JSON, `leaktrace.file/1`: not a comment, because pprof prints those above every report |
//!
//! [`write()`] and [`read()`] are inverse to each other but for trailing zeros of lifetimes and empty names. Where
//! files go is `export::file`'s part.

mod details;
mod message;
mod read;
mod verdict;
mod watch;
mod write;

pub use read::read;
pub use write::write;

/// The sample types in their order, and their units.
const SAMPLE_TYPES: [(&str, &str); 4] = [
    ("inuse_space", "bytes"),
    ("inuse_objects", "count"),
    ("alloc_space", "bytes"),
    ("alloc_objects", "count"),
];

#[cfg(test)]
mod tests;
