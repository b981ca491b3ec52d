//! What a program is known by from one process to the next: its build id, or its path where it has none.
use std::fs::{self, File};

use super::{elf::ElfFile, object::ObjectFile};

/// The key of a program; `build_id` is in hexadecimal. Hostile.
pub fn key(build_id: Option<&str>, path: &str) -> String {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    build_id.map_or_else(|| format!("path:{path}"), |id| format!("build-id:{id}"))
}

/// The key of the program that a process executes; none where it is gone or may not be looked into.
pub fn of_process(pid: u32) -> Option<String> {
    let link = format!("/proc/{pid}/exe");
    let path = fs::read_link(&link).ok()?;
    let file = File::open(link).and_then(ObjectFile::of_file).ok()?;
    let build_id = ElfFile::parse(&file).ok().and_then(|elf| elf.build_id());
    let build_id = build_id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Some(key(build_id.as_deref(), &path.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_build_id_else_by_its_path() {
        assert_eq!(key(Some("abcd"), "/bin/a"), "build-id:abcd");
        assert_eq!(key(None, "/bin/a (deleted)"), "path:/bin/a");
        let own = of_process(std::process::id()).unwrap();
        assert!(own.starts_with("build-id:") || own.starts_with("path:/"), "{own}");
        assert_eq!(of_process(u32::MAX), None);
    }
}
