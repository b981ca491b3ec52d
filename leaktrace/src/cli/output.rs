//! Where reports go: standard output, standard error or a file; as text or as one JSON object a line.
use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{
    choices::{Color, Format},
    file_args::ShowArgs,
    files,
    trace_args::TraceArgs,
};
use crate::{
    agent::session::Report,
    export::json,
    model::snapshot::{CallView, Snapshot},
    render::{text, text::Style, trace},
};

/// Width of text that does not go to a terminal.
const DEFAULT_WIDTH: usize = 100;

/// The stream that a report goes to without `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// A sink for summaries and calls.
pub(super) struct Output {
    writer: Box<dyn Write>,
    format: Format,
    style: Style,
}

impl Output {
    /// Opens the sink that the arguments ask for.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn open(args: &TraceArgs, stream: Stream) -> Result<Output> {
        let (writer, is_terminal): (Box<dyn Write>, bool) = match (&args.output, stream) {
            (Some(path), _) => (Box::new(create(path)?), false),
            (None, Stream::Stdout) => (Box::new(io::stdout()), io::stdout().is_terminal()),
            (None, Stream::Stderr) => (Box::new(io::stderr()), io::stderr().is_terminal()),
        };
        let color = wants_color(args.color, is_terminal);
        let width = if is_terminal { terminal_width(stream) } else { DEFAULT_WIDTH };
        Ok(Output {
            writer,
            format: args.format,
            style: Style { width, color, combined_only: args.combined_only },
        })
    }

    /// The sink of a summary beside the one that goes to a file: `-o` is not its own.
    pub(super) fn summary(args: &TraceArgs, stream: Stream) -> Output {
        let style = Style { combined_only: args.combined_only, ..style_of(stream, args.color) };
        let writer: Box<dyn Write> = match (args.quiet, stream) {
            (true, _) => Box::new(io::sink()),
            (false, Stream::Stdout) => Box::new(io::stdout()),
            (false, Stream::Stderr) => Box::new(io::stderr()),
        };
        Output { writer, format: args.format, style }
    }

    /// One write for each summary, so that a reader never sees half an object unless the disk is full.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.writer.write_all(text.as_bytes())?;
        self.writer.flush()
    }
}

/// Where the report of a file goes, and how it looks there.
pub(super) struct Sheet<'a> {
    file: Option<&'a Path>,
    /// For text.
    pub(super) style: Style,
}

impl Sheet<'_> {
    pub(super) fn of(args: &ShowArgs) -> Sheet<'_> {
        let style = match args.output {
            Some(_) => {
                Style { width: DEFAULT_WIDTH, color: wants_color(args.color, false), combined_only: false }
            }
            None => style_of(Stream::Stdout, args.color),
        };
        Sheet { file: args.output.as_deref(), style }
    }

    /// Writes it; the exit code is 0.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, text: &str) -> Result<u8> {
        files::write(self.file, text.as_bytes())?;
        Ok(0)
    }
}

pub(super) fn style_of(stream: Stream, color: Color) -> Style {
    let is_terminal = match stream {
        Stream::Stdout => io::stdout().is_terminal(),
        Stream::Stderr => io::stderr().is_terminal(),
    };
    let width = if is_terminal { terminal_width(stream) } else { DEFAULT_WIDTH };
    Style { width, color: wants_color(color, is_terminal), combined_only: false }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write the report to {}", path.display()))
}

/// Whether to colour, by the option, the stream and NO_COLOR (no-color.org).
pub(super) fn wants_color(color: Color, is_terminal: bool) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

fn terminal_width(stream: Stream) -> usize {
    let fd = match stream {
        Stream::Stdout => libc::STDOUT_FILENO,
        Stream::Stderr => libc::STDERR_FILENO,
    };
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes one structure of this type.
    let result = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    if result == 0 && size.ws_col >= 40 { usize::from(size.ws_col) } else { DEFAULT_WIDTH }
}

impl Report for Output {
    fn snapshot(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let text = match self.format {
            Format::Text => text::snapshot(snapshot, self.style),
            Format::Json => json::snapshot(snapshot),
        };
        self.write(&text)
    }

    fn calls(&mut self, calls: &[CallView]) -> io::Result<()> {
        let text: String = calls
            .iter()
            .map(|call| match self.format {
                Format::Text => trace::call(call, false, self.style),
                Format::Json => json::call(call),
            })
            .collect();
        self.write(&text)
    }
}
