//! Which functions return. Code behind a call to one that does not (`abort`, a failed assertion) is another
//! function, or a part that is reached from elsewhere: to follow the call into it would be wrong.
//!
//! Found as the least fixed point: no function returns until a way through it is seen that ends in a return,
//! across calls only to functions that are known to return.
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use iced_x86::{FlowControl, Instruction};

use crate::unwind::synthesis::{Image, decode};

/// The functions among `entries` that return.
pub(super) fn returning(image: &Image<'_>, entries: &BTreeSet<u64>) -> HashSet<u64> {
    let mut search = Search {
        image,
        entries,
        owners: HashMap::new(),
        returning: HashSet::new(),
        waiting: BTreeMap::new(),
    };
    for &entry in entries {
        search.follow(vec![Way { function: entry, address: entry }]);
    }
    search.returning
}

/// A way through a function, up to an address.
#[derive(Clone, Copy)]
struct Way {
    function: u64,
    address: u64,
}

/// What is waiting for a function to return.
#[derive(Clone, Copy)]
enum Waiting {
    /// A way behind a call.
    Call(Way),
    /// A function that jumps to it.
    Jump(u64),
}

struct Search<'i, 'r> {
    image: &'i Image<'r>,
    entries: &'i BTreeSet<u64>,
    /// The function that each address was first reached from.
    owners: HashMap<u64, u64>,
    returning: HashSet<u64>,
    waiting: BTreeMap<u64, Vec<Waiting>>,
}

impl Search<'_, '_> {
    fn follow(&mut self, mut ways: Vec<Way>) {
        while let Some(Way { function, address }) = ways.pop() {
            if address != function && self.entries.contains(&address) {
                self.wait(address, Waiting::Jump(function), &mut ways);
                continue;
            }
            if let Some(&owner) = self.owners.get(&address) {
                if owner != function {
                    self.wait(owner, Waiting::Jump(function), &mut ways);
                }
                continue;
            }
            self.owners.insert(address, function);
            // Code that is not here may return.
            let instruction = self.image.code_at(address).and_then(|code| decode(code, address));
            match instruction {
                Some(instruction) => self.pass(function, &instruction, &mut ways),
                None => self.returns(function, &mut ways),
            }
        }
    }

    fn pass(&mut self, function: u64, instruction: &Instruction, ways: &mut Vec<Way>) {
        let next = Way { function, address: instruction.next_ip() };
        let target = Way { function, address: instruction.near_branch_target() };
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::IndirectCall => ways.push(next),
            FlowControl::Call if instruction.is_call_near() && self.entries.contains(&target.address) => {
                self.wait(target.address, Waiting::Call(next), ways);
            }
            FlowControl::Call => ways.push(next),
            FlowControl::ConditionalBranch => ways.extend([next, target]),
            FlowControl::UnconditionalBranch => ways.push(target),
            FlowControl::Return | FlowControl::IndirectBranch => self.returns(function, ways),
            _ => {}
        }
    }

    fn wait(&mut self, function: u64, waiting: Waiting, ways: &mut Vec<Way>) {
        if self.returning.contains(&function) {
            self.resume(waiting, ways);
        } else {
            self.waiting.entry(function).or_default().push(waiting);
        }
    }

    fn returns(&mut self, function: u64, ways: &mut Vec<Way>) {
        let mut found = vec![function];
        while let Some(function) = found.pop() {
            if !self.returning.insert(function) {
                continue;
            }
            for waiting in self.waiting.remove(&function).unwrap_or_default() {
                match waiting {
                    Waiting::Call(way) => ways.push(way),
                    Waiting::Jump(from) => found.push(from),
                }
            }
        }
    }

    fn resume(&mut self, waiting: Waiting, ways: &mut Vec<Way>) {
        match waiting {
            Waiting::Call(way) => ways.push(way),
            Waiting::Jump(function) => self.returns(function, ways),
        }
    }
}
