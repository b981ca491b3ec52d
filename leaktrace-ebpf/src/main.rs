//! The kernel programs of leaktrace: one allocation program and one free program driven by hook descriptors in
//! the attach cookie, tracepoints for mapping system calls and for process life, and the stack walker.
//!
//! Which functions exist and where they are probed is decided in user space; what crosses the boundary is
//! defined in `leaktrace-common`. Uprobe programs can be preempted (since Linux 6.0), so scratch memory is per
//! thread, never per CPU.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod allocation;
mod count;
mod dispatch;
mod free;
mod life;
mod mapping;
mod maps;
mod orders;
mod own_stack;
mod parked;
mod probes;
mod registers;
mod reuse;
mod sample;
mod site;
mod stack;
mod tables;
mod target;
mod thread;
mod walk;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
