//! What is known about the traced processes, as values: no file is opened and no clock is read here.
//!
//! Decoded kernel records go into [`mappings`], [`stacks`] and [`blocks`]; [`sites`] joins them with the kernel's
//! totals and with the [`history`], [`ranked`] puts them in order for what a [`snapshot`] shows of one process.

pub mod blocks;
pub mod cut;
pub mod diagnosis;
pub mod diff;
pub mod estimate;
pub mod events;
pub mod history;
pub mod listing;
pub mod mappings;
pub mod memory;
pub mod overhead;
pub mod quantity;
pub mod ranked;
pub mod relocated;
pub mod series;
pub mod service;
pub mod site_id;
pub mod sites;
pub mod snapshot;
pub mod stacks;
pub mod units;
pub mod verdict;
