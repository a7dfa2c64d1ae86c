//! The hot path allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use otp::lockout::NEVER;
use otp::{
    Algorithm, Code, Counter, Parameters, Policy, Secret, TimeStep, Window, judge, matching_pair, matching_step,
};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the one that is needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the one that is needed.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn parsing_matching_and_judging_allocate_nothing() {
    let secret = Secret::from_slice(&[7; 128]);
    let policy = Policy { max_attempts: 5, lockout: 1, lockout_max: 1, hard_limit: 100 };
    let before = ALLOCATIONS.get();
    for algorithm in Algorithm::ALL {
        let parameters = Parameters { algorithm, ..Parameters::default() };
        let Ok(code) = Code::parse(" 123\u{a0}\u{2013}456\u{200b} ") else { panic!() };
        let matched = matching_step(&secret, parameters, &code, TimeStep::new(56_666_666), Window::default());
        matching_pair(&secret, parameters, [&code, &code], TimeStep::new(56_666_666), 20);
        judge(Counter::CLEAR, &policy, NEVER + 1, TimeStep::NONE, matched, None);
    }
    assert_eq!(ALLOCATIONS.get(), before);
    drop(Vec::<u8>::with_capacity(1));
    assert_eq!(ALLOCATIONS.get(), before + 1, "the counter counts");
}
