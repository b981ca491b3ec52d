//! Suppressions in the format of LeakSanitizer: call stacks that somebody has looked at and wants to hear no more of.
//!
//! A line is `leak:PATTERN`; `#` begins a comment. A pattern is searched for in the function, the source file and the
//! module of each frame: `*` stands for anything, `^` at its beginning and `$` at its end tie it to the ends of the name.
use std::fmt;

use crate::model::snapshot::{Frame, SiteView};

/// Patterns in a list, and bytes of a list, at the most: a program may bring its own.
const MAX_PATTERNS: usize = 10_000;

/// A pattern, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<String>,
    begins: bool,
    ends: bool,
}

/// A list of patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions {
    patterns: Vec<Pattern>,
}

/// A line that is no suppression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it, as a clause.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for Mistake {}

impl Pattern {
    /// Reads what stands after `leak:`.
    pub fn new(text: &str) -> Pattern {
        let (begins, rest) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let (ends, rest) = rest.strip_suffix('$').map_or((false, rest), |rest| (true, rest));
        Pattern { text: text.to_owned(), parts: rest.split('*').map(str::to_owned).collect(), begins, ends }
    }

    /// Whether the pattern is in the name.
    pub fn matches(&self, name: &str) -> bool {
        let [first, middle @ ..] = self.parts.as_slice() else { return false };
        let Some((last, middle)) = middle.split_last() else { return self.matches_one(first, name) };
        let mut rest = match (self.begins, name.find(first.as_str())) {
            (true, _) => match name.strip_prefix(first.as_str()) {
                Some(rest) => rest,
                None => return false,
            },
            (false, Some(at)) => name.get(at + first.len()..).unwrap_or_default(),
            (false, None) => return false,
        };
        // Each part as early as it can be leaves the most for the parts after it.
        for part in middle {
            let Some(at) = rest.find(part.as_str()) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        if self.ends { rest.ends_with(last.as_str()) } else { rest.contains(last.as_str()) }
    }

    fn matches_one(&self, part: &str, name: &str) -> bool {
        match (self.begins, self.ends) {
            (true, true) => name == part,
            (true, false) => name.starts_with(part),
            (false, true) => name.ends_with(part),
            (false, false) => name.contains(part),
        }
    }

    fn matches_frame(&self, frame: &Frame) -> bool {
        let names = [&frame.function, &frame.file, &frame.module];
        names.into_iter().flatten().any(|name| self.matches(name))
    }
}

impl Suppressions {
    /// Reads a list.
    ///
    /// # Errors
    /// The first line that is neither empty, nor a comment, nor a suppression; more patterns than are read.
    pub fn parse(text: &str) -> Result<Suppressions, Mistake> {
        let mut patterns = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mistake = |what: &str| Mistake { line: index + 1, what: what.to_owned() };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(pattern) = line.strip_prefix("leak:") else {
                return Err(mistake("a suppression is leak:PATTERN"));
            };
            if pattern.trim_matches(['^', '$']).is_empty() {
                return Err(mistake("the pattern is empty"));
            }
            if patterns.len() == MAX_PATTERNS {
                return Err(mistake("more suppressions than are read"));
            }
            patterns.push(Pattern::new(pattern));
        }
        Ok(Suppressions { patterns })
    }

    /// The suppression that the site falls under, as it was written.
    pub fn find(&self, site: &SiteView) -> Option<&str> {
        let matches = |pattern: &&Pattern| site.frames.iter().any(|frame| pattern.matches_frame(frame));
        self.patterns.iter().find(matches).map(|pattern| pattern.text.as_str())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_searched_for_unless_it_is_tied_to_an_end() {
        for (pattern, matching, others) in [
            ("cache", vec!["cache", "my_cache_add"], vec!["Cache", ""]),
            ("^cache", vec!["cache", "cache_add"], vec!["my_cache"]),
            ("cache$", vec!["cache", "my_cache"], vec!["cache_add"]),
            ("^cache$", vec!["cache"], vec!["cache2", "my_cache"]),
            ("a*b", vec!["ab", "xaxbx"], vec!["ba", "a"]),
            ("^a*b$", vec!["ab", "aXb", "abb"], vec!["xab", "abx", "a"]),
            ("^aba*ba$", vec!["ababa", "abaXba"], vec!["aba"]),
            ("*libfoo*.so*", vec!["/lib/libfoo.so.1", "libfoo-2.so"], vec!["libfoo.a"]),
            ("a*b*c", vec!["abc", "a.b.c."], vec!["acb"]),
            ("*", vec!["anything", ""], vec![]),
        ] {
            let read = Pattern::new(pattern);
            for name in matching {
                assert!(read.matches(name), "{pattern} {name}");
            }
            for name in others {
                assert!(!read.matches(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn function_file_and_module_of_any_frame_count() {
        let frame = |function: &str, file: &str, module: &str| Frame {
            function: Some(function.to_owned()),
            file: Some(file.to_owned()),
            module: Some(module.to_owned()),
            ..Frame::default()
        };
        let frames = vec![frame("inner", "in.c", "/lib/libin.so"), frame("outer", "/src/out.c", "/srv/app")];
        let site = SiteView { frames: frames.into(), ..SiteView::default() };
        let list = Suppressions::parse(
            "# known\n\n  leak:^outer$  \r\nleak:out.c\nleak:libin\nleak:^/srv/\nleak:nowhere",
        );
        let list = list.unwrap();
        assert_eq!(list.find(&site), Some("^outer$"));
        for pattern in &list.patterns[..4] {
            assert!(site.frames.iter().any(|frame| pattern.matches_frame(frame)), "{}", pattern.text);
        }
        assert_eq!(Suppressions::parse("leak:nowhere").unwrap().find(&site), None);
        assert_eq!(Suppressions::default().find(&site), None);
    }

    #[test]
    fn what_is_no_suppression_is_an_error_with_its_line() {
        for (text, line) in [("leak:a\nrace:b", 2), ("leak:", 1), ("\nleak:^$", 2), ("nonsense", 1)] {
            assert_eq!(Suppressions::parse(text).unwrap_err().line, line, "{text}");
        }
        assert!(Suppressions::parse("").unwrap().is_empty());
    }
}
