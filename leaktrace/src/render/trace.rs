//! Single calls as text, for `--trace`: one line for the call, then its stack.
use super::{
    escape::escape,
    text::{Style, stack},
    units,
};
use crate::model::snapshot::CallView;

/// The call in a line, and with `stacks` the frames below it.
pub fn call(call: &CallView, stacks: bool, style: Style) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(call.time))
        .map_or_else(|_| call.time.to_string(), |time| time.strftime("%H:%M:%S%.6f").to_string());
    let size = call.size_bytes.map_or_else(|| "?".to_owned(), units::bytes);
    let old = call.old_address.map_or_else(String::new, |old| format!(" (was 0x{old:012x})"));
    let sign = if call.free { '-' } else { '+' };
    let mut text = format!(
        "{time} {}/{} {:<15} {sign} 0x{:012x} {size:>10} {}{old}\n",
        call.pid,
        call.tid,
        escape(&call.comm),
        call.address,
        escape(&call.function),
    );
    if stacks {
        text.push_str(&stack(&call.frames, "complete", 4, style));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::Frame;

    #[test]
    fn a_call_is_one_line_and_its_stack_follows() {
        let view = CallView {
            time: 1_763_640_000_123_456_789,
            pid: 7,
            tid: 8,
            comm: "srv".to_owned(),
            function: "realloc".to_owned(),
            address: 0x5555,
            size_bytes: Some(4096),
            old_address: Some(0x4444),
            frames: vec![Frame { function: Some("main".to_owned()), offset: Some(1), ..Frame::default() }],
            ..CallView::default()
        };
        let line =
            "12:00:00.123456 7/8 srv             + 0x000000005555    4.0 KiB realloc (was 0x000000004444)\n";
        assert_eq!(call(&view, false, Style::default()), line);
        assert_eq!(call(&view, true, Style::default()), format!("{line}    main+0x1 in ?\n"));
        let free = CallView { free: true, size_bytes: None, old_address: None, ..view };
        assert!(call(&free, false, Style::default()).contains(" - 0x000000005555          ? realloc\n"));
    }
}
