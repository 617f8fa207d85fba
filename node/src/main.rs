//! The binary `weft`: everything is in the library, so that the simulator runs the same code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weft::cli::main(std::env::args_os())
}
