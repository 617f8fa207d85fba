//! What asks the system for random numbers in this process gets them from the seed.
//!
//! The standard library's hash maps, tokio, chitchat and openraft draw theirs from the C library's `getrandom`, which this
//! replaces. aws-lc asks the kernel itself, so keys and signatures differ from run to run; nothing in a run depends on
//! their bytes.

use std::cell::RefCell;

use crate::dice::Dice;

thread_local! {
    static DICE: RefCell<Option<Dice>> = const { RefCell::new(None) };
}

/// From now on this thread's random numbers are those of the seed.
pub fn seed(seed: u64) {
    DICE.with(|dice| *dice.borrow_mut() = Some(Dice::new(seed, "entropy")));
}

/// The C library's function.
///
/// # Safety
/// `buffer` points to `length` bytes that may be written, as its callers promise to the C library.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the only way below libraries that ask the system by themselves")]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller of `getrandom` gives a buffer of that length.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    let mut fill = |dice: &mut Dice| dice.fill(bytes);
    DICE.with(|dice| match &mut *dice.borrow_mut() {
        Some(dice) => fill(dice),
        None => fill(&mut Dice::new(u64::from(std::process::id()), "unseeded")),
    });
    isize::try_from(length).unwrap_or(isize::MAX)
}
