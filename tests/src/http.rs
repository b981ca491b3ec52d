//! Just enough of an HTTP client for the agent's API, over TCP and Unix sockets: one request a connection.
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in small letters.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("no JSON: {} {}", self.status, self.text()))
    }
}

/// A stream in both directions.
pub trait Both: Read + Write + Send {}
impl<T: Read + Write + Send> Both for T {}

/// Connects to `http://ADDRESS` or `unix:/path`.
pub fn connect(address: &str) -> Result<Box<dyn Both>> {
    if let Some(path) = address.strip_prefix("unix:") {
        let stream = UnixStream::connect(path).with_context(|| format!("nobody answers at {address}"))?;
        stream.set_read_timeout(Some(crate::patience(PATIENCE)))?;
        return Ok(Box::new(stream));
    }
    let Some(host) = address.strip_prefix("http://") else { bail!("{address:?} is no address") };
    let stream = TcpStream::connect(host).with_context(|| format!("nobody answers at {address}"))?;
    stream.set_read_timeout(Some(crate::patience(PATIENCE)))?;
    Ok(Box::new(stream))
}

/// Sends a request without a body; the headers are lines without their ends.
pub fn send(address: &str, method: &str, path: &str, headers: &[&str]) -> Result<Box<dyn Both>> {
    let mut stream = connect(address)?;
    let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n")?;
    Ok(stream)
}

/// One request and its whole answer.
pub fn request(address: &str, method: &str, path: &str, headers: &[&str]) -> Result<Answer> {
    let mut reader = BufReader::new(send(address, method, path, headers)?);
    let mut line = String::new();
    reader.read_line(&mut line).with_context(|| format!("no answer to {method} {path}"))?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.with_context(|| format!("{line:?} is no answer to {method} {path}"))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the answer to {method} {path} has no end");
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut body = Vec::new();
    reader.read_to_end(&mut body).with_context(|| format!("the answer to {method} {path} breaks off"))?;
    Ok(Answer { status, headers, body })
}
