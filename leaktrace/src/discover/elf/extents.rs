//! Where the function around an address starts and ends, from `.eh_frame_hdr`'s sorted table and the FDE it
//! leads to: the only bounds that a stripped file has. Unwind rules are not read here; that is for `unwind`.
use super::{ElfFile, u32_at};
use gimli::{BaseAddresses, EhFrame, EhFrameOffset, LittleEndian, UnwindSection};
use std::ops::Range;

const MAX_HEADER_BYTES: u64 = 64 << 20;
/// The farthest that an FDE may lie behind its CIE.
const MAX_WINDOW_BYTES: u64 = 64 << 20;
const MAX_FDE_BYTES: u64 = 64 << 10;
/// The longest CIE that is read: real ones have some 20 bytes.
const MAX_CIE_BYTES: u64 = 4096;

/// The sorted table: pairs of function start and FDE, both relative to the header's address.
#[derive(Debug)]
pub struct FrameTable {
    header_address: u64,
    rows: Vec<u8>,
}

impl ElfFile<'_> {
    /// The address range of the function that contains `address`, by the file's unwind information.
    pub fn function_extent(&self, address: u64) -> Option<Range<u64>> {
        let table = self.extents.get_or_init(|| self.read_frame_table()).as_ref()?;
        self.read_extent(table.fde_for(address)?).filter(|extent| extent.contains(&address))
    }

    /// Accepts the only encodings that linkers write: udata4 count, datarel sdata4 table.
    fn read_frame_table(&self) -> Option<FrameTable> {
        let header = self.frame_header?;
        let bytes = self.read_address(header.start, header.bytes.min(MAX_HEADER_BYTES))?;
        let [1, _, 0x03, 0x3b] = *bytes.first_chunk::<4>()? else { return None };
        let count = u32_at(&bytes, 8)? as usize;
        let rows = bytes.get(12..)?;
        let rows = rows.get(..count.checked_mul(8)?).unwrap_or(rows);
        Some(FrameTable { header_address: header.start, rows: rows.to_vec() })
    }

    fn read_extent(&self, fde: u64) -> Option<Range<u64>> {
        let head = self.read_address(fde, 8)?;
        let length = u64::from(u32_at(&head, 0)?).checked_add(4).filter(|length| *length <= MAX_FDE_BYTES)?;
        let cie = fde.checked_add(4)?.checked_sub(u64::from(u32_at(&head, 4)?))?;
        fde.checked_sub(cie).filter(|back| *back <= MAX_WINDOW_BYTES)?;
        let cie_bytes = u64::from(u32_at(&self.read_address(cie, 4)?, 0)?).checked_add(4)?;
        let mut window = self.read_address(cie, Some(cie_bytes).filter(|bytes| *bytes <= MAX_CIE_BYTES)?)?;
        // The two are brought together, so that what lies between them is not read; the FDE keeps its address.
        let at = window.len();
        let pointer = u32::try_from(at).ok()?.checked_add(4)?;
        window.extend(self.read_address(fde, length)?);
        window.get_mut(at.checked_add(4)?..at.checked_add(8)?)?.copy_from_slice(&pointer.to_le_bytes());
        let bases = BaseAddresses::default().set_eh_frame(fde.checked_sub(at as u64)?);
        let frame = EhFrame::new(&window, LittleEndian);
        let entry = frame.fde_from_offset(&bases, EhFrameOffset(at), EhFrame::cie_from_offset).ok()?;
        let start = entry.initial_address();
        Some(start..start.checked_add(entry.len())?)
    }
}

impl FrameTable {
    fn row(&self, index: usize) -> Option<(u64, u64)> {
        let at = index.checked_mul(8)?;
        let relative = |at| {
            u32_at(&self.rows, at).map(|word| self.header_address.wrapping_add_signed(i64::from(word as i32)))
        };
        Some((relative(at)?, relative(at + 4)?))
    }

    /// The FDE of the last function that starts at or before `address`.
    fn fde_for(&self, address: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.rows.len() / 8);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.row(middle)?.0 <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.row(low.checked_sub(1)?).map(|(_, fde)| fde)
    }
}
