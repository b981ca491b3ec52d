//! `leaktrace diff`: what grew between two snapshot files.
use anyhow::Result;

use super::{choices::Format, file_args::DiffArgs, files, output::Sheet};
use crate::{export, model, render};

/// Prints the difference; the exit code is 0 whatever it is.
///
/// # Errors
/// When a file cannot be read or the report not be written.
pub(super) fn diff(args: &DiffArgs) -> Result<u8> {
    let (old, new) = (files::read(&args.old)?, files::read(&args.new)?);
    let diff = model::diff::diff(&old, &new);
    let top = usize::try_from(args.show.top).unwrap_or(usize::MAX);
    let sheet = Sheet::of(&args.show);
    let text = match args.show.format {
        Format::Text => render::diff::diff(&diff, top, sheet.style),
        Format::Json => export::diff::diff(&diff, top),
    };
    sheet.write(&text)
}
