//! The lines of a pipe, read by a thread of their own, so that waiting for one can have a deadline.
use anyhow::{Result, anyhow, bail};
use std::{
    io::{BufRead, BufReader, Read},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

/// Lines as they come.
#[derive(Debug)]
pub struct Lines {
    from: String,
    lines: Receiver<String>,
}

impl Lines {
    /// Starts to read; `from` names the pipe in messages.
    pub fn new(from: &str, pipe: impl Read + Send + 'static) -> Lines {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n') {
                let Ok(line) = line else { return };
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Lines { from: from.to_owned(), lines }
    }

    /// The next line, `None` at the end of the pipe; an error when neither comes before `deadline`.
    pub fn next_before(&self, deadline: Instant) -> Result<Option<String>> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(anyhow!("{} said nothing more in time", self.from)),
        }
    }

    /// The lines that have come already.
    pub fn waiting(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// All lines up to the end of the pipe, which must come before `deadline`.
    pub fn rest(&self, deadline: Instant) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        while let Some(line) = self.next_before(deadline)? {
            lines.push(line);
        }
        Ok(lines)
    }
}

/// Everything that a pipe has said so far, collected by a thread of its own.
#[derive(Clone, Debug, Default)]
pub struct Transcript {
    text: Arc<Mutex<String>>,
}

impl Transcript {
    /// Starts to read.
    pub fn new(mut pipe: impl Read + Send + 'static) -> Transcript {
        let transcript = Transcript::default();
        let text = transcript.text.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut bytes) {
                let piece = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
                if let Ok(mut text) = text.lock() {
                    text.push_str(&piece);
                }
            }
        });
        transcript
    }

    /// What it has said so far.
    pub fn text(&self) -> String {
        self.text.lock().map(|text| text.clone()).unwrap_or_default()
    }
}

/// Asks again and again, with a short pause, until there is an answer: for states that nothing announces.
pub fn poll<T>(what: &str, time: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {:.0} s in vain: {what}", time.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_order_and_then_the_end() {
        let lines = Lines::new("text", &b"one\ntwo\n"[..]);
        assert_eq!(lines.rest(Instant::now() + Duration::from_secs(5)).unwrap(), ["one", "two"]);
    }

    #[test]
    fn silence_is_an_error_that_names_who_was_silent() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let lines = Lines::new("the fixture", reader);
        let error = lines.next_before(Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().contains("the fixture"));
    }
}
