//! Takes the kernel out of a compressed image (bzImage): booting the uncompressed one by PVH spares the guest the
//! decompression, which is slow under emulation. The format is the kernel's Documentation/arch/x86/boot.rst.
use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    io::{Read, Write},
    process::Stdio,
};

/// Offsets in the header.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const RELEASE: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// What the release's offset is relative to.
const SECTOR: usize = 512;

/// The kernel's release, as in `uname -r`; `None` where this is no compressed kernel.
pub(super) fn release(image: &[u8]) -> Option<String> {
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(image.get(RELEASE..RELEASE + 2)?.try_into().ok()?);
    let text = image.get(usize::from(offset) + SECTOR..)?.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()?.split(' ').next().map(str::to_owned)
}

/// The kernel itself, an ELF file.
pub(super) fn extract(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image).context("the image's header makes no sense")?;
    // A compressed payload is followed by its uncompressed size, which gzip has of itself.
    let (compressed, size) = payload.split_last_chunk::<4>().context("the image's payload is empty")?;
    let size = u32::from_le_bytes(*size) as usize;
    let kernel = match payload {
        [0x1f, 0x8b, ..] => decompress("gzip", &["-dc"], payload),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => decompress("xz", &["-dc"], compressed),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => decompress("zstd", &["-dcq"], compressed),
        [0x02, 0x21, 0x4c, 0x18, ..] => decompress("lz4", &["-dcq"], compressed),
        _ => bail!("the image is compressed in a way that is not known: {:02x?}", payload.get(..6)),
    }?;
    if !kernel.starts_with(b"\x7fELF") || kernel.len() != size {
        bail!("the image's payload is {} bytes instead of an ELF file of {size}", kernel.len());
    }
    Ok(kernel)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |offset: usize| {
        let bytes = image.get(offset..offset + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let setup = match image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (setup + 1) * SECTOR + number(PAYLOAD_OFFSET)?;
    image.get(start..start.checked_add(number(PAYLOAD_LENGTH)?)?)
}

/// Through a program, as the distribution has it.
fn decompress(program: &str, arguments: &[&str], bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = command::clean(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}: run `cargo xtask setup --tests`"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let mut stdout = child.stdout.take().context("no standard output")?;
    let mut output = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(move || stdin.write_all(bytes));
        stdout.read_to_end(&mut output).with_context(|| format!("{program} gave nothing back"))?;
        // A program that ends early has its own failure, which says more than a broken pipe.
        drop(writer.join());
        Ok(())
    })?;
    let status = child.wait().with_context(|| format!("{program} got lost"))?;
    if !status.success() {
        bail!("{program} cannot decompress the image ({status})");
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[SETUP_SECTORS] = 3;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[RELEASE..RELEASE + 2].copy_from_slice(&0x300_u16.to_le_bytes());
        image[0x500..0x515].copy_from_slice(b"6.12.1-test (me) #1\0\0");
        let offset: u32 = 0x100;
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&offset.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let start = 4 * SECTOR + offset as usize;
        image[start..start + payload.len()].copy_from_slice(payload);
        image
    }

    #[test]
    fn the_release_ends_at_the_first_blank() {
        assert_eq!(release(&image(&[])).as_deref(), Some("6.12.1-test"));
        assert_eq!(release(b"nothing"), None);
    }

    #[test]
    fn a_payload_comes_back_as_it_was() {
        let kernel = b"\x7fELF and so on, and on, and on";
        let mut payload = decompress("xz", &["-c"], kernel).unwrap();
        payload.extend((kernel.len() as u32).to_le_bytes());
        assert_eq!(extract(&image(&payload)).unwrap(), kernel);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(extract(&image(b"what is this?")).is_err());
        assert!(extract(b"short").is_err());
        let mut image = image(&[0xfd, b'7', b'z', b'X', b'Z', 0, 0, 0, 0, 0]);
        assert!(extract(&image).is_err());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(extract(&image).is_err());
    }
}
