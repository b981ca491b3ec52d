//! The numbers of probed functions: a hook's cookie has 16 bits for one, blocks and trace records carry it.
use std::collections::HashMap;

/// A probed function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its allocator's name.
    pub allocator: &'static str,
}

/// All functions that were ever probed.
#[derive(Debug, Default)]
pub struct Functions {
    list: Vec<Function>,
    numbers: HashMap<Function, u16>,
    allocators: Vec<&'static str>,
}

impl Functions {
    /// The number of a function; beyond 65,535 all share the last one.
    pub fn number(&mut self, function: Function) -> u16 {
        if let Some(number) = self.numbers.get(&function) {
            return *number;
        }
        let Ok(number) = u16::try_from(self.list.len()) else { return u16::MAX };
        if !self.allocators.contains(&function.allocator) {
            self.allocators.push(function.allocator);
        }
        self.list.push(function.clone());
        self.numbers.insert(function, number);
        number
    }

    /// The name of the function with this number.
    pub fn name(&self, number: u16) -> &str {
        self.list.get(usize::from(number)).map_or("?", |function| function.name.as_str())
    }

    /// A small number that tells the function's allocator from others.
    pub fn allocator(&self, number: u16) -> u8 {
        let name = self.list.get(usize::from(number)).map(|function| function.allocator);
        let index = self.allocators.iter().position(|allocator| Some(*allocator) == name);
        index.and_then(|index| u8::try_from(index).ok()).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_keeps_its_number_and_allocators_differ() {
        let mut functions = Functions::default();
        let function = |name: &str, allocator| Function { name: name.to_owned(), allocator };
        let malloc = functions.number(function("malloc", "glibc"));
        let other = functions.number(function("malloc", "jemalloc"));
        assert_eq!(functions.number(function("malloc", "glibc")), malloc);
        assert_ne!(functions.allocator(malloc), functions.allocator(other));
        assert_eq!(functions.name(other), "malloc");
        assert_eq!(functions.name(999), "?");
    }
}
