//! Offsets of kernel structure members, from the kernel's own type information (/sys/kernel/btf/vmlinux).
//!
//! Format: Documentation/bpf/btf.rst of the kernel. Only what the offsets need is decoded.
use std::fs;

use anyhow::{Context as _, Result, bail};

use super::hidden::Feature;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;
/// Bytes of a type's common part.
const TYPE_BYTES: usize = 12;

/// Type information, as read.
pub struct Btf {
    bytes: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: usize,
}

impl Btf {
    /// Reads the kernel's.
    ///
    /// # Errors
    /// When the kernel has none, or it is malformed.
    pub fn of_kernel() -> Result<Btf> {
        let path = "/sys/kernel/btf/vmlinux";
        if Feature::Btf.is_hidden() {
            bail!("{path} is hidden");
        }
        let bytes = fs::read(path).with_context(|| {
            format!("{path} cannot be read: leaktrace needs a kernel built with CONFIG_DEBUG_INFO_BTF")
        })?;
        Btf::parse(bytes)
    }

    fn parse(bytes: Vec<u8>) -> Result<Btf> {
        let word = |at: usize| word(&bytes, at).unwrap_or(0) as usize;
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()) {
            bail!("the kernel's type information has an unknown format");
        }
        let header = word(4);
        let start = header + word(8);
        let types = start..start + word(12);
        let strings = header + word(16);
        Ok(Btf { types, strings, bytes })
    }

    /// Offsets in bytes of `members` of structure `name`, in the order asked for; members of anonymous
    /// structures inside it are not searched.
    pub fn member_offsets<const N: usize>(&self, name: &str, members: [&str; N]) -> Option<[u32; N]> {
        let mut at = self.types.start;
        while at + TYPE_BYTES <= self.types.end {
            let info = word(&self.bytes, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_STRUCT && self.is_string(word(&self.bytes, at)? as usize, name) {
                let found = self.offsets(at + TYPE_BYTES, count, info >> 31 != 0, members);
                if found.is_some() {
                    return found;
                }
            }
            at += TYPE_BYTES + trailing_bytes(kind, count);
        }
        None
    }

    fn offsets<const N: usize>(
        &self,
        at: usize,
        count: usize,
        bits: bool,
        members: [&str; N],
    ) -> Option<[u32; N]> {
        let mut offsets = [None; N];
        for member in 0..count {
            let record = at + member * 12;
            let name = word(&self.bytes, record)? as usize;
            let offset = word(&self.bytes, record + 8)?;
            let offset = if bits { offset & 0x00ff_ffff } else { offset };
            for (slot, wanted) in offsets.iter_mut().zip(members) {
                if self.is_string(name, wanted) {
                    *slot = Some(offset / 8);
                }
            }
        }
        let mut found = [0; N];
        for (to, from) in found.iter_mut().zip(offsets) {
            *to = from?;
        }
        Some(found)
    }

    fn is_string(&self, offset: usize, expected: &str) -> bool {
        let at = self.strings.saturating_add(offset);
        let end = at.saturating_add(expected.len());
        self.bytes.get(at..end) == Some(expected.as_bytes()) && self.bytes.get(end) == Some(&0)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Bytes that follow a type's common part.
fn trailing_bytes(kind: u32, count: usize) -> usize {
    match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_the_members_that_exit_status_needs() {
        let btf = Btf::of_kernel().unwrap();
        let [exit_code, signal] = btf.member_offsets("task_struct", ["exit_code", "signal"]).unwrap();
        assert!(exit_code > 0 && signal > 0 && exit_code != signal);
        assert!(btf.member_offsets("signal_struct", ["live", "group_exit_code", "flags"]).is_some());
        assert!(btf.member_offsets("task_struct", ["no_such_member"]).is_none());
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(Btf::parse(vec![1, 2, 3]).is_err());
        let empty = Btf::parse(MAGIC.to_le_bytes().to_vec()).unwrap();
        assert!(empty.member_offsets("task_struct", ["pid"]).is_none());
    }
}
