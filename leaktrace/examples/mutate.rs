//! A fuzzer for machines without one: changes the seeds of a target at random, feeds them to it, and keeps what makes it
//! panic or takes too long. `cargo xtask fuzz` starts it: `mutate TARGET SECONDS [SEED]`.
#![expect(clippy::indexing_slicing, reason = "a target fails by panicking")]
#![expect(clippy::print_stdout, reason = "it says what it found")]
use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

#[path = "../fuzz/check.rs"]
mod check;

/// An input that takes longer is a finding.
const SLOW: Duration = Duration::from_secs(5);
/// Inputs do not grow beyond this.
const MAX_BYTES: usize = 256 << 10;
/// Findings after which a target is left.
const MAX_FINDINGS: usize = 5;
/// Inputs that are changed again, besides the seeds.
const MAX_POOL: usize = 256;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = words.first().map_or("", String::as_str);
    let seconds = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(5);
    let seed = words.get(2).and_then(|word| word.parse().ok()).unwrap_or_else(seed_of_now);
    let Some((name, take)) = check::TARGETS.iter().find(|(name, _)| *name == wanted) else {
        let names: Vec<&str> = check::TARGETS.iter().map(|(name, _)| *name).collect();
        println!("say which target: {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    let (executions, findings) = fuzz(name, *take, Duration::from_secs(seconds), seed);
    println!("{name}: {executions} executions, {} findings (seed {seed})", findings.len());
    for finding in &findings {
        println!("  {finding}");
    }
    if findings.is_empty() && executions > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seed_of_now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64)
}

fn fuzz(name: &str, take: fn(&[u8]), time: Duration, seed: u64) -> (u64, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut pool: Vec<Vec<u8>> = entries.filter_map(|entry| fs::read(entry.path()).ok()).collect();
    let seeds = pool.len();
    let mut random = Random(seed | 1);
    let (mut executions, mut findings) = (0, Vec::new());
    let begun = Instant::now();
    panic::set_hook(Box::new(|_| {}));
    while begun.elapsed() < time && findings.len() < MAX_FINDINGS && seeds > 0 {
        let mut input = pool[random.below(pool.len())].clone();
        for _ in 0..1 + random.below(8) {
            let other = random.below(pool.len());
            change(&mut input, &pool[other], &mut random);
        }
        let started = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| take(&input)));
        executions += 1;
        let what = match result {
            Err(panic) => Some(format!("panic: {}", message(&*panic))),
            Ok(()) if started.elapsed() > SLOW => Some(format!("it took {:?}", started.elapsed())),
            Ok(()) => None,
        };
        if let Some(what) = what {
            findings.push(format!("{what}: {}", keep(name, &input).display()));
        } else if random.below(16) == 0 {
            // Changes add up.
            if pool.len() < seeds + MAX_POOL {
                pool.push(input);
            } else {
                let place = seeds + random.below(MAX_POOL);
                pool[place] = input;
            }
        }
    }
    let _ = panic::take_hook();
    (executions, findings)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Keeps an input, to become a seed once what it shows is mended.
fn keep(name: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz").join(name);
    let _ = fs::create_dir_all(&folder);
    let sum = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let path = folder.join(format!("{sum:016x}"));
    let _ = fs::write(&path, input);
    path
}

/// One change: bits, numbers that are often forgotten, parts that go, come twice or come from another input.
fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len().max(1));
    let length = 1 + random.below(64);
    let end = (at + length).min(input.len());
    match random.below(8) {
        0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        1 if !input.is_empty() => input[at] = random.next() as u8,
        2 => {
            let width = 1 << random.below(4);
            let number = random.number().to_le_bytes();
            for (place, byte) in input.iter_mut().skip(at).take(width).zip(number) {
                *place = byte;
            }
        }
        3 if at < end => drop(input.drain(at..end)),
        4 if at < end && input.len() < MAX_BYTES => {
            let part = input[at..end].to_vec();
            let place = random.below(input.len());
            input.splice(place..place, part);
        }
        5 if !other.is_empty() && input.len() < MAX_BYTES => {
            let from = random.below(other.len());
            let part = &other[from..(from + length).min(other.len())];
            let place = at.min(input.len());
            input.splice(place..place, part.iter().copied());
        }
        6 if !other.is_empty() => {
            let from = random.below(other.len());
            for (place, byte) in input.iter_mut().skip(at).take(length).zip(&other[from..]) {
                *place = *byte;
            }
        }
        7 if random.below(8) == 0 => input.truncate(at),
        _ => {}
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() >> 16) as usize % end }
    }

    fn number(&mut self) -> u64 {
        const NUMBERS: [u64; 12] = [
            0,
            1,
            0x7f,
            0xff,
            0x7fff,
            0xffff,
            0x7fff_ffff,
            0xffff_ffff,
            u64::MAX,
            i64::MAX as u64,
            1 << 32,
            0x1000,
        ];
        let number = NUMBERS[self.below(NUMBERS.len())];
        if self.below(4) == 0 { number.wrapping_add(self.next() % 16) } else { number }
    }
}
