//! Where a module's names come from: a look at its sections, without reading any symbol.
use std::path::PathBuf;

use super::{debug_files, elf::Layout, module::Module};

/// What a file has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameSources {
    /// Sections that name functions, the best first.
    pub symbols: Vec<&'static str>,
    /// Where lines and inlined functions come from: `"inside"` the file, or a `"separate"` one on this host.
    pub debug_info: Option<&'static str>,
}

impl Module {
    /// Looks at the file, and for a separate debug file in `directories`.
    pub fn name_sources(&self, directories: &[PathBuf]) -> NameSources {
        let whole = self.file.try_clone().and_then(|file| Module::open(self.path.clone(), file));
        let Ok(module) = whole else { return NameSources::default() };
        let Some(layout) = &module.layout else { return NameSources::default() };
        let has =
            |layout: &Layout, name: &str| layout.section(name).is_some_and(|section| section.size_bytes > 0);
        let names = [".symtab", ".dynsym"];
        let mut sources = NameSources {
            symbols: names.into_iter().filter(|name| has(layout, name)).collect(),
            debug_info: has(layout, ".debug_info").then_some("inside"),
        };
        if sources.debug_info.is_none()
            && let Some((_, separate)) = debug_files::find(&module, directories)
        {
            sources.debug_info = has(&separate, ".debug_info").then_some("separate");
            if has(&separate, ".symtab") {
                sources.symbols.insert(0, "separate .symtab");
            }
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn this_program_has_symbols_and_debug_information_inside() {
        let module = Module::open("/test".to_owned(), File::open("/proc/self/exe").unwrap()).unwrap();
        let sources = module.name_sources(&[]);
        assert!(sources.symbols.contains(&".symtab"));
        assert_eq!(sources.debug_info, Some("inside"));
    }

    #[test]
    fn a_file_that_is_no_elf_file_has_nothing() {
        let module = Module::open("/etc/passwd".to_owned(), File::open("/etc/passwd").unwrap()).unwrap();
        assert_eq!(module.name_sources(&[]), NameSources::default());
    }
}
