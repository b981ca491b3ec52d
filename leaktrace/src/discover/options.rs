//! What the user says about allocators that discovery cannot see by itself: `--object`, `--symbols-prefix`,
//! `--function`. Parses the words; finding the functions is for [`super`].
use super::allocators::hook_of;
use leaktrace_common::hook::Hook;
use std::{fmt, path::PathBuf, str::FromStr};

/// Hints for discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Files to take as allocators even if they define no free function (`--object`).
    pub objects: Vec<PathBuf>,
    /// More prefixes of allocation functions (`--symbols-prefix`).
    pub prefixes: Vec<String>,
    /// Functions of stripped files (`--function`): looked for in `objects`, or in the executable where there
    /// are none.
    pub functions: Vec<FunctionAt>,
}

/// `--function NAME=KIND@OFFSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionAt {
    /// A label for reports.
    pub name: String,
    /// What it does, taken from the standard function that KIND names.
    pub hook: Hook,
    /// Offset of its first instruction in the file.
    pub file_offset: u64,
}

/// Why a `--function` or `--symbols-prefix` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError(String);

impl fmt::Display for OptionError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for OptionError {}

/// Kinds that `--function` takes, in the order in which the message lists them.
pub const FUNCTION_KINDS: [&str; 12] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "reallocf",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "free",
    "mallocx",
    "rallocx",
];

impl FromStr for FunctionAt {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<FunctionAt, OptionError> {
        let wrong = |why: &str| {
            OptionError(format!(
                "'{text}' is not NAME=KIND@OFFSET ({why}), for example my_alloc=malloc@0x1a2b0"
            ))
        };
        let (name, rest) = text.split_once('=').ok_or_else(|| wrong("there is no '='"))?;
        let (kind, offset) = rest.split_once('@').ok_or_else(|| wrong("there is no '@' after '='"))?;
        if name.is_empty() {
            return Err(wrong("the name is empty"));
        }
        if !FUNCTION_KINDS.contains(&kind) {
            return Err(OptionError(format!(
                "'{kind}' in '{text}' is no kind of function: use one of {}",
                FUNCTION_KINDS.join(", ")
            )));
        }
        let hook = hook_of(kind).ok_or_else(|| wrong("the kind is unknown"))?;
        let digits = offset.strip_prefix("0x").unwrap_or(offset);
        let file_offset = u64::from_str_radix(digits, 16)
            .map_err(|_| wrong("the offset is the file offset of its first instruction in hexadecimal"))?;
        Ok(FunctionAt { name: name.to_owned(), hook, file_offset })
    }
}

/// Checks a `--symbols-prefix`.
///
/// # Errors
/// An empty prefix, or one with characters that no C symbol has.
pub fn parse_prefix(text: &str) -> Result<String, OptionError> {
    let fits = |character: char| character.is_ascii_alphanumeric() || character == '_' || character == '$';
    if text.is_empty() {
        return Err(OptionError("the prefix is empty: plain names are looked for in any case".into()));
    }
    if text.len() > 64 || !text.chars().all(fits) {
        return Err(OptionError(format!(
            "'{text}' cannot begin a symbol: give what stands before 'malloc', for example 'je_'"
        )));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaktrace_common::hook::Shape;

    #[test]
    fn a_function_has_a_label_a_kind_and_a_hexadecimal_offset() {
        let function: FunctionAt = "pool_get=calloc@0x1A2b0".parse().unwrap();
        assert_eq!((function.name.as_str(), function.file_offset), ("pool_get", 0x1a2b0));
        assert_eq!((function.hook.shape, function.hook.count, function.hook.size), (Shape::Allocate, 0, 1));
        assert_eq!("f=free@10".parse::<FunctionAt>().unwrap().file_offset, 0x10);
    }

    #[test]
    fn every_kind_in_the_message_is_known() {
        for kind in FUNCTION_KINDS {
            assert!(format!("x={kind}@1").parse::<FunctionAt>().is_ok(), "{kind}");
        }
    }

    #[test]
    fn a_wrong_function_says_what_is_wrong() {
        let message = |text: &str| text.parse::<FunctionAt>().unwrap_err().to_string();
        assert!(message("malloc@10").contains("no '='"));
        assert!(message("a=malloc").contains("no '@'"));
        assert!(message("=malloc@1").contains("name is empty"));
        assert!(message("a=mallok@1").contains("use one of malloc, calloc"));
        assert!(message("a=malloc@zz").contains("hexadecimal"));
    }

    #[test]
    fn a_prefix_is_part_of_a_symbol() {
        assert_eq!(parse_prefix("je_").unwrap(), "je_");
        assert!(parse_prefix("").is_err() && parse_prefix("a b").is_err());
    }
}
