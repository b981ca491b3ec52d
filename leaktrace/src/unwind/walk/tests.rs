use super::*;
use crate::unwind::contents::Contents;
use crate::unwind::{live::Process, rule::plain, table::Options};
use leaktrace_common::unwind::FRAME_ADDRESS;
use std::{
    arch::asm,
    ffi::{c_int, c_void},
    hint::black_box,
    sync::{Mutex, OnceLock},
};

/// One process, full and pruned, for all tests here. Built first, so that every later library is missed.
fn process() -> &'static [Process; 2] {
    static PROCESS: OnceLock<[Process; 2]> = OnceLock::new();
    PROCESS.get_or_init(|| [false, true].map(|prune| Process::this(&Options { prune, ..Options::default() })))
}

/// Walks from here and asks the C library for the same stack. Inlined into the frame that both begin in.
#[inline(always)]
fn both(process: &Process) -> (Stack, Vec<u64>) {
    let (ip, sp, rbp, rbx): (u64, u64, u64, u64);
    // SAFETY: copies registers to registers.
    unsafe {
        asm!(
            "lea {ip}, [rip]", "mov {sp}, rsp", "mov {rbp}, rbp", "mov {rbx}, rbx",
            ip = out(reg) ip, sp = out(reg) sp, rbp = out(reg) rbp, rbx = out(reg) rbx,
            options(nomem, nostack, preserves_flags),
        );
    }
    let start = Start { ip, sp, rbp, rbx, is_exact: true };
    let stack = walk(start, &process.mappings, &process.contents, read_own_stack);
    let mut frames = [std::ptr::null_mut::<c_void>(); 512];
    // SAFETY: the array is as long as it says.
    let count = unsafe { libc::backtrace(frames.as_mut_ptr(), frames.len() as c_int) };
    (stack, frames[..count as usize].iter().map(|&frame| frame as u64).collect())
}

fn read_own_stack(address: u64) -> Option<u64> {
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: 8 };
    let this = std::process::id() as libc::pid_t;
    // SAFETY: the kernel checks the address that is read; the word is ours.
    let read = unsafe { libc::process_vm_readv(this, &local, 1, &remote, 1, 0) };
    (read == 8).then_some(word)
}

/// The frames from the caller outwards are those of the C library, and the walk says that they are all.
#[track_caller]
fn assert_same((stack, expected): (Stack, Vec<u64>)) {
    let frames: Vec<u64> = stack.frames.iter().map(|frame| frame & FRAME_ADDRESS).collect();
    assert!(expected.len() > 3);
    assert_eq!(format!("{:x?}", &frames[1..]), format!("{:x?}", &expected[1..]));
    assert_eq!(stack.stop, Stop::Complete);
}

#[test]
fn the_stack_of_a_test_is_the_c_librarys() {
    process().iter().for_each(|process| assert_same(both(process)));
}

#[inline(never)]
fn recurse<T>(depth: u32, end: &mut dyn FnMut() -> T) -> T {
    if depth == 0 { end() } else { black_box(recurse(black_box(depth) - 1, end)) }
}

#[test]
fn a_recursion_is_walked_to_its_end() {
    for process in process() {
        assert_same(recurse(40, &mut || both(process)));
    }
}

#[test]
fn a_deep_recursion_gives_as_many_frames_as_are_kept_and_says_so() {
    let (stack, expected) = recurse(200, &mut || both(&process()[0]));
    assert_eq!((stack.frames.len(), stack.stop), (MAX_FRAMES, Stop::Depth));
    assert_eq!(stack.frames[1..], expected[1..MAX_FRAMES]);
}

#[test]
fn a_frame_with_a_variable_size_is_walked() {
    #[inline(never)]
    fn with_array(bytes: &mut [u8], process: &Process) -> (Stack, Vec<u64>) {
        bytes.fill(1);
        both(process)
    }
    let mut large = [0u8; 100_000];
    assert_same(with_array(&mut large, &process()[0]));
}

/// Results from C callbacks, which can capture nothing.
static FOUND: Mutex<Vec<(Stack, Vec<u64>)>> = Mutex::new(Vec::new());
/// One user of `FOUND` at a time.
static CALLBACK: Mutex<()> = Mutex::new(());

extern "C" fn compare(_: *const c_void, _: *const c_void) -> c_int {
    let mut found = FOUND.lock().unwrap();
    if found.is_empty() {
        found.extend(process().iter().map(both));
    }
    0
}

#[test]
fn a_callback_from_c_is_walked_through() {
    process();
    let _only = CALLBACK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut array = [3u32, 1, 2];
    // SAFETY: three elements of four bytes, and a comparison that reads none.
    unsafe { libc::qsort(array.as_mut_ptr().cast(), 3, 4, Some(compare)) };
    for found in FOUND.lock().unwrap().drain(..) {
        assert_same(found);
    }
}

extern "C" fn on_signal(_: c_int) {
    FOUND.lock().unwrap().push(both(&process()[0]));
}

#[test]
fn a_signal_handler_is_walked_through_to_what_it_interrupted() {
    process();
    let _only = CALLBACK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(c_int) as usize;
    // SAFETY: a valid action; no one else in the tests uses the signal.
    unsafe { libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()) };
    // SAFETY: the handler only runs code that is safe here: this thread holds none of its locks.
    unsafe { libc::raise(libc::SIGUSR2) };
    let found: Vec<_> = FOUND.lock().unwrap().drain(..).collect();
    assert_eq!(found.len(), 1);
    let exact = found[0].0.frames.iter().filter(|&&frame| frame & FRAME_EXACT != 0).count();
    assert_eq!(exact, 2, "the start and the interrupted frame");
    found.into_iter().for_each(assert_same);
}

#[test]
fn a_thread_is_walked_to_where_it_began() {
    process();
    let found = std::thread::spawn(|| recurse(3, &mut || both(&process()[1]))).join().unwrap();
    assert_same(found);
}

/// One mapping in which the walker guesses.
fn guessing() -> [Mapping; 1] {
    [Mapping { start: 0x1000, end: 0x9000, bias: 0, first_page: GUESS_TABLE, pages: 0, salt: 0 }]
}

fn start(sp: u64, rbp: u64) -> Start {
    Start { ip: 0x2000, sp, rbp, rbx: 0, is_exact: false }
}

/// Memory from addresses and words.
fn memory(words: &[(u64, u64)]) -> impl Fn(u64) -> Option<u64> {
    move |address| words.iter().find(|word| word.0 == address).map(|word| word.1)
}

#[test]
fn guessed_frames_are_marked_and_a_chain_that_ends_says_guessed() {
    let words = [(0x100, 0x200), (0x108, 0x3000), (0x200, 0), (0x208, 0x4000)];
    let stack = walk(start(0x100, 0x100), &guessing(), &Contents::default(), memory(&words));
    assert_eq!(stack.frames, [0x2000, 0x3000 | FRAME_GUESSED, 0x4000 | FRAME_GUESSED]);
    assert_eq!(stack.stop, Stop::Guessed);
}

/// A file whose only rule is Go's.
struct Go;

impl Rules for Go {
    fn rule_at(&self, _: &Mapping, _: u64) -> Option<Rule> {
        Some(plain(kind::GO))
    }
}

#[test]
fn go_frames_are_followed_to_another_stack_until_the_frame_pointer_is_zero() {
    let mapping = [Mapping { start: 0x1000, end: 0x9000, bias: 0, first_page: 0, pages: 1, salt: 0 }];
    let words = [(0x20, 0x40), (0x28, 0x3000), (0x40, 0), (0x48, 0x4000)];
    let stack = walk(start(0x7000_0000, 0x20), &mapping, &Go, memory(&words));
    assert_eq!(stack, Stack { frames: vec![0x2000, 0x3000, 0x4000], stop: Stop::Complete });
    let stack = walk(start(0x7000_0000, 0x30), &mapping, &Go, memory(&words));
    assert_eq!(stack, Stack { frames: vec![0x2000], stop: Stop::ReadFault });
}

#[test]
fn a_guess_needs_a_frame_pointer_near_and_above_the_stack_pointer() {
    let words = [(0x108, 0x3000), (0x20_0108, 0x3000)];
    for (sp, rbp) in [(0x101, 0x100), (0x100, 0x20_0100)] {
        let stack = walk(start(sp, rbp), &guessing(), &Contents::default(), memory(&words));
        assert_eq!((stack.frames.len(), stack.stop), (1, Stop::Guessed));
    }
}

#[test]
fn a_guess_needs_a_return_address_that_is_code() {
    let stack = walk(start(0x100, 0x100), &guessing(), &Contents::default(), memory(&[(0x108, 0x9001)]));
    assert_eq!((stack.frames.len(), stack.stop), (1, Stop::Guessed));
}

#[test]
fn an_address_in_no_mapping_and_a_table_that_is_missing_stop_alike() {
    let missing = Mapping { first_page: NO_TABLE, ..guessing()[0] };
    for mappings in [vec![], vec![missing]] {
        let stack = walk(start(0x100, 0x100), &mappings, &Contents::default(), |_| Some(0));
        assert_eq!((stack.frames, stack.stop), (vec![0x2000], Stop::NoMapping));
    }
}
