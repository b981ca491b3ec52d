//! `leaktrace ps`: processes to choose from.
use std::io::IsTerminal as _;

use anyhow::Result;

use super::{
    args::PsArgs,
    choices::{Format, PsSort},
    output::{Stream, style_of},
    print,
};
use crate::{
    agent::{listing, orders::Orders},
    export,
    model::listing::ListOrder,
    render,
};

/// Prints the table. The exit code is 0.
///
/// # Errors
/// When a selector selects nothing; when it cannot be written.
pub(super) fn ps(args: &PsArgs) -> Result<u8> {
    let orders =
        Orders { selectors: args.targets.selectors()?, exclude: args.exclude.clone(), ..Orders::default() };
    let mut listing = listing::list(&orders, args.watch);
    let order = match args.sort {
        PsSort::Rss => ListOrder::Rss,
        PsSort::Growth => ListOrder::Growth,
        PsSort::Pid => ListOrder::Pid,
    };
    listing.arrange(order, usize::try_from(args.top).unwrap_or(usize::MAX));
    let text = match args.format {
        Format::Json => export::ps::listing(&listing),
        Format::Text => {
            let mut style = style_of(Stream::Stdout, args.color);
            // A table that is piped is read by programs: nothing is cut off.
            if !std::io::stdout().is_terminal() {
                style.width = usize::MAX;
            }
            render::ps::listing(&listing, style)
        }
    };
    print(text.as_bytes())
}
