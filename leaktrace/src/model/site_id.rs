//! The name of an allocation call stack that stays the same from run to run.
//!
//! A site's id is a 64-bit hash over its frames, innermost first, printed as 16 hexadecimal digits. Of each frame
//! that is not inlined it takes the module's file name without its directory, then the function with the offset
//! in it, or, without a symbol, the offset in the module's file. Addresses do not enter, so address-space
//! randomisation does not change the id; nor do lines. Inlined frames lie at the same offset as the frame they
//! are inlined into and add nothing. A function's name does enter: installing symbols for a stripped file changes
//! the ids of its sites once.
//!
//! The hash is fixed: for every byte of a part, `h = (h ^ byte) * 0x100000001b3` (FNV-1a, 64 bits, basis
//! 0xcbf29ce484222325); every part ends with the byte 0xff, which cannot occur in UTF-8; numbers go in as 8
//! little-endian bytes; at the end the value goes through splitmix64's finaliser. Changing any of this breaks
//! comparisons with older files and needs a new schema version.
use super::snapshot::{Frame, SiteKind};

/// The hash of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub u64);

impl std::fmt::Display for SiteId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A hash of where in which files the frames of a stack lie: what sites are told apart by before anybody has looked for
/// names. In one run it is as good as the [`SiteId`]; from build to build it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(pub u64);

/// The hash of the places of a stack whose allocations are of `kind`. A frame without a place in a file (generated code)
/// goes in by its name.
pub fn place_id<'a>(kind: SiteKind, frames: impl IntoIterator<Item = &'a Frame>) -> PlaceId {
    let mut hash = Hash::of(kind);
    for frame in frames.into_iter().filter(|frame| !frame.inlined) {
        hash.part(frame.module.as_deref().map_or("", base_name).as_bytes());
        hash.part(frame.build_id.as_deref().unwrap_or_default().as_bytes());
        match (frame.module_offset, &frame.function) {
            (Some(offset), _) => hash.part(&offset.to_le_bytes()),
            (None, Some(function)) => {
                hash.part(function.as_bytes());
                hash.part(&frame.offset.unwrap_or(0).to_le_bytes());
            }
            (None, None) => hash.part(b"?"),
        }
    }
    PlaceId(hash.finish())
}

/// The id of a stack whose allocations are of `kind`.
pub fn site_id<'a>(kind: SiteKind, frames: impl IntoIterator<Item = &'a Frame>) -> SiteId {
    let mut hash = Hash::of(kind);
    for frame in frames.into_iter().filter(|frame| !frame.inlined) {
        hash.part(frame.module.as_deref().map_or("", base_name).as_bytes());
        match (&frame.function, frame.offset, frame.module_offset) {
            (Some(function), offset, _) => {
                hash.part(function.as_bytes());
                hash.part(&offset.unwrap_or(0).to_le_bytes());
            }
            (None, _, Some(offset)) => hash.part(&offset.to_le_bytes()),
            // Outside of every file nothing but the position in the stack is stable.
            (None, _, None) => hash.part(b"?"),
        }
    }
    SiteId(hash.finish())
}

/// The id of a stack of which nothing but the kernel's hash is known.
pub fn unknown_site_id(kind: SiteKind, stack: u64) -> SiteId {
    let mut hash = Hash(BASIS);
    hash.part(if kind == SiteKind::Heap { b"unknown heap" } else { b"unknown mapping" });
    hash.part(&stack.to_le_bytes());
    SiteId(hash.finish())
}

/// The part of a path after the last slash.
pub fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

struct Hash(u64);

impl Hash {
    fn of(kind: SiteKind) -> Hash {
        let mut hash = Hash(BASIS);
        hash.part(match kind {
            SiteKind::Heap => b"heap",
            SiteKind::Mapping => b"mapping",
        });
        hash
    }

    fn part(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(self) -> u64 {
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(module: &str, function: Option<&str>, offset: u64) -> Frame {
        Frame {
            address: 0x7000_0000 + offset,
            module: Some(module.to_owned()),
            module_offset: Some(0x1000 + offset),
            function: function.map(str::to_owned),
            offset: function.map(|_| offset),
            ..Frame::default()
        }
    }

    #[test]
    fn an_id_is_fixed_for_all_time() {
        let frames = [frame("/usr/bin/server", Some("main"), 0x10), frame("/lib/libc.so.6", None, 0x20)];
        assert_eq!(site_id(SiteKind::Heap, &frames).to_string(), "4260b0e38af759f0");
    }

    #[test]
    fn addresses_directories_lines_and_inlined_frames_do_not_matter() {
        let plain = [frame("/usr/bin/server", Some("main"), 0x10)];
        let mut moved = frame("/opt/server", Some("main"), 0x10);
        moved.address = 42;
        moved.line = Some(7);
        let inlined = Frame { inlined: true, ..frame("/opt/server", Some("push"), 0) };
        assert_eq!(site_id(SiteKind::Heap, &plain), site_id(SiteKind::Heap, &[inlined, moved]));
    }

    #[test]
    fn places_need_no_names_and_tell_builds_apart() {
        let named = frame("/usr/bin/server", Some("main"), 0x10);
        let unnamed = Frame { function: None, offset: None, ..named.clone() };
        let id = place_id(SiteKind::Heap, [&named]);
        assert_eq!(id, place_id(SiteKind::Heap, [&unnamed]));
        assert_ne!(id, place_id(SiteKind::Mapping, [&named]));
        let other_build = Frame { build_id: Some("ab".to_owned()), ..named.clone() };
        assert_ne!(id, place_id(SiteKind::Heap, [&other_build]));
        let generated = Frame { module_offset: None, ..named };
        let other = Frame { function: Some("other".to_owned()), ..generated.clone() };
        assert_ne!(place_id(SiteKind::Heap, [&generated]), place_id(SiteKind::Heap, [&other]));
    }

    #[test]
    fn function_offset_module_kind_and_order_matter() {
        let base = vec![frame("a", Some("f"), 1), frame("a", Some("g"), 2)];
        let id = site_id(SiteKind::Heap, &base);
        let mut others = [base.clone(), base.clone(), base.clone(), base.clone()];
        others[0][0] = frame("a", Some("h"), 1);
        others[1][0] = frame("a", Some("f"), 2);
        others[2][0] = frame("b", Some("f"), 1);
        others[3].reverse();
        assert!(others.iter().all(|frames| site_id(SiteKind::Heap, frames) != id));
        assert_ne!(site_id(SiteKind::Mapping, &base), id);
        assert_ne!(site_id(SiteKind::Heap, &[]), unknown_site_id(SiteKind::Heap, 0));
    }
}
