//! Snapshots, calls and findings as text. Pure: values in, strings out; where they go, how wide the terminal is and
//! whether it shows colours is left to `cli`. Machine formats are left to `export`.

pub mod diff;
pub mod doctor;
pub mod escape;
pub mod ps;
pub mod report;
pub mod text;
pub mod trace;
mod words;
pub use crate::model::units;
