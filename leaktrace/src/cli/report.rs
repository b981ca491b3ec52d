//! `leaktrace report`: a snapshot file as text or JSON, by the renderers of live summaries.
use anyhow::Result;

use super::{file_args::ReportArgs, files, output::Sheet};
use crate::{
    cli::choices::Format,
    export::json,
    render::text::{self, Style},
};

/// Prints the report.
///
/// # Errors
/// When the file cannot be read or the report not be written.
pub(super) fn report(args: &ReportArgs) -> Result<u8> {
    let mut snapshot = files::read(&args.file)?;
    snapshot.cut(args.sort.order(), usize::try_from(args.show.top).unwrap_or(usize::MAX));
    let sheet = Sheet::of(&args.show);
    let text = match args.show.format {
        Format::Text => text::snapshot(&snapshot, Style { combined_only: args.combined_only, ..sheet.style }),
        Format::Json => json::snapshot(&snapshot),
    };
    sheet.write(&text)
}
