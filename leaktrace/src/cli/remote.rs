//! `leaktrace snapshot --agent URL`: a snapshot of what a running agent traces already.
use std::{
    io::{Read, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::files;
use crate::{export::pprof, model::service::is_live};

/// What an agent answers with is at most as large as a snapshot file may be.
const MAX_BYTES: u64 = 128 << 20;
/// Time for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(60);
const PATH: &str = "/debug/pprof/heap";

/// Asks the agent at `address` (http://, https:// or unix:/path) and writes its answer; with `pids`, only what it
/// holds of those processes.
///
/// # Errors
/// When nobody answers there, the answer is no snapshot, or the agent does not trace one of the processes.
pub(super) fn snapshot(address: &str, pids: &[u32], file: &Path) -> Result<()> {
    let bytes = match address.strip_prefix("unix:") {
        Some(path) => ask_unix(Path::new(path)),
        None => ask_http(address),
    }
    .with_context(|| format!("no snapshot from the agent at {address}"))?;
    let mut snapshot =
        pprof::read(&bytes).with_context(|| format!("what answers at {address} is no leaktrace agent"))?;
    if pids.is_empty() {
        return files::write(Some(file), &bytes);
    }
    snapshot.targets.retain(|target| pids.contains(&target.pid));
    for pid in pids {
        if !snapshot.targets.iter().any(|target| target.pid == *pid && is_live(target)) {
            bail!(
                "the agent at {address} does not trace process {pid}: its configuration says what it traces"
            );
        }
    }
    files::write(Some(file), &pprof::write(&snapshot))
}

fn ask_http(address: &str) -> Result<Vec<u8>> {
    if !address.starts_with("http://") && !address.starts_with("https://") {
        bail!("say http://HOST:PORT or unix:/path");
    }
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
    let mut answer = ureq::Agent::new_with_config(config)
        .get(format!("{}{PATH}", address.trim_end_matches('/')))
        .call()?;
    Ok(answer.body_mut().with_config().limit(MAX_BYTES).read_to_vec()?)
}

/// One request by HTTP/1.0, whose answer ends with the connection.
fn ask_unix(path: &Path) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {PATH} HTTP/1.0\r\nhost: agent\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer)?;
    body(&answer).map(<[u8]>::to_vec)
}

fn body(answer: &[u8]) -> Result<&[u8]> {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { bail!("the answer breaks off") };
    let (head, body) = answer.split_at_checked(end + 4).unwrap_or((answer, &[]));
    let first = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default());
    match first.split(' ').nth(1) {
        Some("200") => Ok(body),
        _ => bail!("it answers {}", crate::render::escape::escape(&first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_has_a_body() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\na: b\r\n\r\nx\r\n\r\ny").unwrap(), b"x\r\n\r\ny");
        for wrong in
            ["", "HTTP/1.0 200 OK\r\n", "HTTP/1.0 503 No\r\n\r\nx", "\r\n\r\n", "garbage\x1b\r\n\r\n"]
        {
            assert!(body(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(ask_http("ftp://x").is_err());
    }
}
