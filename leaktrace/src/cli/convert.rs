//! `leaktrace convert` and `leaktrace flamegraph`: a snapshot file in another format.
use anyhow::Result;

use super::{
    file_args::{ConvertArgs, FileFormat, FlamegraphArgs},
    files,
};
use crate::export::{flamegraph, folded, json, pprof, speedscope};

/// Writes the other format.
///
/// # Errors
/// When the file cannot be read or the other not be written.
pub(super) fn convert(args: &ConvertArgs) -> Result<u8> {
    let snapshot = files::read(&args.file)?;
    let bytes = match args.to {
        FileFormat::Folded => folded::folded(&snapshot, args.value.into()).into_bytes(),
        FileFormat::Json => json::snapshot(&snapshot).into_bytes(),
        FileFormat::Speedscope => speedscope::speedscope(&snapshot, args.value.into()).into_bytes(),
        FileFormat::Pprof => pprof::write(&snapshot),
    };
    files::write(args.output.as_deref(), &bytes)?;
    Ok(0)
}

/// Draws.
///
/// # Errors
/// When the file cannot be read, holds nothing to draw, or the picture cannot be written.
pub(super) fn flamegraph(args: &FlamegraphArgs) -> Result<u8> {
    let snapshot = files::read(&args.file)?;
    let svg = flamegraph::flamegraph(&snapshot, args.value.into())?;
    files::write(args.output.as_deref(), svg.as_bytes())?;
    Ok(0)
}
