//! `leaktrace doctor`: what this host can do, what is missing and how to get it; with `-p` the same for processes.
use std::io::IsTerminal as _;

use anyhow::Result;

use super::{FAILED, args::DoctorArgs, choices::Format, output::wants_color, print};
use crate::{
    agent::diagnose::diagnose,
    export,
    render::{self, text::Style},
};

/// Prints the diagnosis. The exit code is 0 when leaktrace can work here and trace each process, else 1.
///
/// # Errors
/// When it cannot be written.
pub(super) fn doctor(args: &DoctorArgs) -> Result<u8> {
    let diagnosis = diagnose(&args.pids);
    let text = match args.format {
        Format::Json => export::doctor::diagnosis(&diagnosis),
        Format::Text => {
            let color = wants_color(args.color, std::io::stdout().is_terminal());
            render::doctor::diagnosis(&diagnosis, Style { color, ..Style::default() })
        }
    };
    print(text.as_bytes())?;
    Ok(if diagnosis.works() { 0 } else { FAILED })
}
