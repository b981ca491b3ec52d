//! What goes between the process that asks for names and the one that reads files: requests with an open file at most,
//! and frames. A message is its length in four bytes and JSON; a file's descriptor travels with the length.
use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Limits, reason};
use crate::model::snapshot::Frame;

/// Larger messages are not believed: names are bounded, and so is how many of them one address has.
const MAX_MESSAGE_BYTES: u32 = 16 << 20;
/// Room for a control message with one descriptor: its header is 16 bytes, and it is aligned to 8.
const CONTROL_WORDS: usize = 4;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first: bounds, and where to look.
    Begin(Box<Limits>),
    /// A file, which comes along, and what to call it from now on.
    Open { id: u32, path: String },
    /// What is at an address of a file as linked; `lines`: with debug information.
    Ask { id: u32, virtual_offset: u64, lines: bool },
}

/// The answer to [`Request::Ask`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) frames: Vec<Named>,
    /// Debug information that should have been had and was not.
    pub(super) messages: Vec<String>,
}

/// A frame's names, as far as they depend on the file alone.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    function: Option<String>,
    offset: Option<u64>,
    file: Option<String>,
    line: Option<u32>,
    inlined: bool,
    reason: Option<String>,
}

impl Named {
    /// Whether there is but a reason.
    #[cfg(test)]
    pub(super) fn is_nameless(&self) -> bool {
        self.function.is_none() && self.reason.is_some()
    }
}

impl From<Frame> for Named {
    fn from(frame: Frame) -> Named {
        let Frame { function, offset, file, line, inlined, reason, .. } = frame;
        Named { function, offset, file, line, inlined, reason: reason.map(str::to_owned) }
    }
}

impl From<Named> for Frame {
    fn from(named: Named) -> Frame {
        let Named { function, offset, file, line, inlined, reason } = named;
        let reason = reason.map(|text| {
            reason::ALL.iter().copied().find(|known| **known == *text).unwrap_or(reason::DAMAGED)
        });
        Frame { function, offset, file, line, inlined, reason, ..Frame::default() }
    }
}

/// Sends a message, and a descriptor with it.
pub(super) fn send(
    stream: &mut UnixStream,
    message: &impl Serialize,
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match file {
        Some(file) => send_with(stream, &length.to_le_bytes(), file)?,
        None => stream.write_all(&length.to_le_bytes())?,
    }
    stream.write_all(&text)
}

/// Receives a message; `None` at the end.
pub(super) fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<(T, Option<File>)>> {
    let mut head = [0; 4];
    let (count, file) = receive_with(stream, &mut head)?;
    if count == 0 {
        return Ok(None);
    }
    stream.read_exact(head.get_mut(count..).unwrap_or_default())?;
    let length = u32::from_le_bytes(head);
    if length > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    Ok(Some((serde_json::from_slice(&text)?, file)))
}

/// A message's parts for sendmsg(2) and recvmsg(2), in memory that stays where it is.
struct Parts {
    data: libc::iovec,
    control: [u64; CONTROL_WORDS],
}

impl Parts {
    fn of(data: *mut u8, bytes: usize) -> Parts {
        Parts { data: libc::iovec { iov_base: data.cast(), iov_len: bytes }, control: [0; CONTROL_WORDS] }
    }

    fn header(&mut self, control_bytes: usize) -> libc::msghdr {
        // SAFETY: of integers and pointers; zero is a value of each.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut self.data;
        header.msg_iovlen = 1;
        header.msg_control = self.control.as_mut_ptr().cast();
        header.msg_controllen = control_bytes as _;
        header
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8; 4], file: BorrowedFd<'_>) -> io::Result<()> {
    let mut parts = Parts::of(bytes.as_ptr().cast_mut(), bytes.len());
    // A cmsghdr: length (size_t), level, type; then the descriptor.
    let [length, kind, descriptor, _] = &mut parts.control;
    *length = 16 + 4;
    *kind = u64::from(libc::SOL_SOCKET.cast_unsigned()) | u64::from(libc::SCM_RIGHTS.cast_unsigned()) << 32;
    *descriptor = u64::from(file.as_raw_fd().cast_unsigned());
    let header = parts.header(24);
    // SAFETY: the header leads to `parts` and to `bytes`, which outlive the call; the call only reads them.
    let sent = unsafe { libc::sendmsg(stream.as_fd().as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::from(io::ErrorKind::WriteZero)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn receive_with(stream: &UnixStream, bytes: &mut [u8; 4]) -> io::Result<(usize, Option<File>)> {
    let mut parts = Parts::of(bytes.as_mut_ptr(), bytes.len());
    let mut header = parts.header(CONTROL_WORDS * 8);
    let fd = stream.as_fd().as_raw_fd();
    let count = loop {
        // SAFETY: the header leads to `parts` and to `bytes`, which outlive the call, with their sizes.
        let count = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(count) {
            Ok(count) => break count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let [_, kind, descriptor, _] = parts.control;
    let rights =
        u64::from(libc::SOL_SOCKET.cast_unsigned()) | u64::from(libc::SCM_RIGHTS.cast_unsigned()) << 32;
    let file = (header.msg_controllen >= 20 && kind == rights).then(|| {
        // SAFETY: the kernel has just made this descriptor for us.
        File::from(unsafe { OwnedFd::from_raw_fd(descriptor as u32 as i32) })
    });
    Ok((count, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_the_file_that_was_sent_along() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let file = File::open("/proc/self/status").unwrap();
        send(&mut one, &Request::Open { id: 7, path: "/ü\"".to_owned() }, Some(file.as_fd())).unwrap();
        send(&mut one, &Request::Ask { id: 7, virtual_offset: u64::MAX, lines: true }, None).unwrap();
        let (first, file) = receive::<Request>(&mut other).unwrap().unwrap();
        assert!(matches!(first, Request::Open { id: 7, path } if path == "/ü\""));
        let mut text = String::new();
        file.unwrap().read_to_string(&mut text).unwrap();
        assert!(text.starts_with("Name:"), "{text}");
        let (second, file) = receive::<Request>(&mut other).unwrap().unwrap();
        assert!(matches!(second, Request::Ask { virtual_offset: u64::MAX, .. }) && file.is_none());
        drop(one);
        assert!(receive::<Request>(&mut other).unwrap().is_none());
    }

    #[test]
    fn a_message_that_claims_to_be_huge_is_refused() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        one.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(receive::<Answer>(&mut other).is_err());
    }

    #[test]
    fn frames_come_back_as_they_were() {
        for reason in reason::ALL {
            let frame = Frame { line: Some(3), reason: Some(reason), ..Frame::default() };
            assert_eq!(Frame::from(Named::from(frame.clone())), frame);
        }
    }
}
