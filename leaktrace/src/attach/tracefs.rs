//! Tracepoint ids. Where tracefs is not mounted it is mounted detached (Linux 5.2): no mount table changes.
use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow};

/// Where distributions mount it.
const USUAL_PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A tracefs, mounted by the host or by us.
pub enum Tracefs {
    /// The host's mount.
    Mounted(&'static str),
    /// A detached mount of our own.
    Private(OwnedFd),
}

/// Whether this process can look up tracepoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// In the host's mount at this place.
    Mounted(&'static str),
    /// In a private mount, which can be made.
    Private,
    /// There is a mount, the host's at this place or a private one, but this process may not read it.
    Denied(&'static str),
    /// It is not mounted and cannot be mounted: the error.
    Unavailable(String),
}

/// A file that every tracefs has, and that is read by whoever attaches to tracepoints.
const SAMPLE: &str = "events/task/task_newtask/id";

impl Tracefs {
    /// What [`Tracefs::find`] would find.
    pub fn access() -> Access {
        match Tracefs::look() {
            Ok(Tracefs::Mounted(place)) => Access::Mounted(place),
            Ok(Tracefs::Private(_)) => Access::Private,
            Err(access) => access,
        }
    }

    /// Finds the host's mount or makes a private one.
    ///
    /// # Errors
    /// With what to do, when neither works.
    pub fn find() -> Result<Tracefs> {
        Tracefs::look().map_err(|access| anyhow!(access.problem().unwrap_or_default()))
    }

    fn look() -> Result<Tracefs, Access> {
        for place in USUAL_PLACES {
            match fs::read(format!("{place}/{SAMPLE}")) {
                Ok(_) => return Ok(Tracefs::Mounted(place)),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(Access::Denied(place));
                }
                Err(_) => {}
            }
        }
        let mount = mount_detached().map_err(|error| Access::Unavailable(error.to_string()))?;
        match fs::read(format!("/proc/self/fd/{}/{SAMPLE}", mount.as_raw_fd())) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(Access::Denied("a private mount"))
            }
            _ => Ok(Tracefs::Private(mount)),
        }
    }

    /// The id of a tracepoint.
    ///
    /// # Errors
    /// When this kernel does not have it.
    pub fn tracepoint_id(&self, category: &str, name: &str) -> Result<u64> {
        let text = self.read(category, name, "id")?;
        text.trim().parse().with_context(|| format!("the id of tracepoint {category}:{name} is not a number"))
    }

    /// Where a field lies in the tracepoint's record.
    ///
    /// # Errors
    /// When this kernel does not have the tracepoint, or the field in it.
    pub fn field_offset(&self, category: &str, name: &str, field: &str) -> Result<u64> {
        let format = self.read(category, name, "format")?;
        offset_in(&format, field)
            .with_context(|| format!("tracepoint {category}:{name} of this kernel has no field {field}"))
    }

    fn read(&self, category: &str, name: &str, file: &str) -> Result<String> {
        let relative = format!("events/{category}/{name}/{file}");
        let path = match self {
            Tracefs::Mounted(place) => format!("{place}/{relative}"),
            Tracefs::Private(mount) => format!("/proc/self/fd/{}/{relative}", mount.as_raw_fd()),
        };
        fs::read_to_string(&path).with_context(|| format!("this kernel has no tracepoint {category}:{name}"))
    }

    /// Where it is, for people.
    pub fn describe(&self) -> String {
        match self {
            Tracefs::Mounted(place) => format!("mounted at {place}"),
            Tracefs::Private(_) => "not mounted on the host; mounted privately".to_owned(),
        }
    }
}

impl Access {
    /// Why tracepoints cannot be looked up, in words, and how to change that; none where they can.
    pub fn problem(&self) -> Option<String> {
        match self {
            Access::Mounted(_) | Access::Private => None,
            Access::Denied(place) => Some(format!(
                "tracefs ({place}) may not be read: run as root, or give leaktrace CAP_DAC_READ_SEARCH"
            )),
            Access::Unavailable(error) => Some(format!(
                "tracefs is not mounted and cannot be mounted privately ({error}): mount it with `mount -t tracefs \
                 tracefs /sys/kernel/tracing`, or give leaktrace CAP_SYS_ADMIN"
            )),
        }
    }
}

/// From a line like `field:int pid; offset:24; size:4; signed:1;`, with tabs in between.
fn offset_in(format: &str, field: &str) -> Option<u64> {
    format.lines().find_map(|line| {
        let (declaration, rest) = line.trim().strip_prefix("field:")?.split_once(';')?;
        let name = declaration.rsplit(' ').next()?;
        let offset = rest.trim().strip_prefix("offset:")?.split(';').next()?;
        if name == field { offset.parse().ok() } else { None }
    })
}

/// fsopen, fsconfig, fsmount: a mount that no namespace shows.
fn mount_detached() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    let name = CString::new("tracefs").map_err(io::Error::other)?;
    // SAFETY: the name is a terminated string.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })?;
    let nothing = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    let created = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, nothing, nothing, 0)
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_field_is_read_from_the_record_s_format() {
        let format = "name: x\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
            \tfield:u64 dst_id;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:int pid;\toffset:24;\tsize:4;\tsigned:1;\n";
        assert_eq!(offset_in(format, "pid"), Some(24));
        assert_eq!(offset_in(format, "dst_id"), Some(16));
        assert_eq!(offset_in(format, "comm"), None);
    }
}
