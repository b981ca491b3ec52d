//! Which of all processes are watched, by orders. A process is asked about when it is new, and those that no order means
//! again now and then: they may have become another program or moved to a container.
use std::collections::HashMap;

use crate::{
    agent::orders::Orders,
    discover::{
        candidate::{self, Candidate},
        container::Containers,
    },
};

/// Looks after which processes that were not meant are asked about again.
const AGAIN: u32 = 12;

/// The orders and what is known.
pub struct Meant {
    orders: Orders,
    containers: Containers,
    known: HashMap<u32, bool>,
    looks: u32,
}

impl Meant {
    /// Knows no process yet.
    pub fn new(orders: Orders) -> Meant {
        let mut containers = Containers::default();
        if orders.name_containers() {
            containers.prepare();
        }
        Meant { orders, containers, known: HashMap::new(), looks: 0 }
    }

    /// Whether processes may come that are meant.
    pub fn is_standing(&self) -> bool {
        self.orders.are_standing()
    }

    /// The processes that are meant now.
    pub fn pids(&mut self) -> Vec<u32> {
        let is_anew = self.looks.is_multiple_of(AGAIN) || self.containers.take_answers();
        self.looks = self.looks.wrapping_add(1);
        let before = std::mem::take(&mut self.known);
        for pid in candidate::process_ids() {
            let is_meant = match before.get(&pid) {
                Some(true) => true,
                Some(false) if !is_anew => false,
                _ => Candidate::read(pid, &mut self.containers)
                    .is_some_and(|candidate| self.orders.want(&candidate)),
            };
            self.known.insert(pid, is_meant);
        }
        self.known.iter().filter(|(_, is_meant)| **is_meant).map(|(pid, _)| *pid).collect()
    }
}
